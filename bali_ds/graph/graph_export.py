"""Export of a graph in the formats of other tools, and of its names as a dictionary."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from bali_ds.errors import InputError
from bali_ds.files import published_file
from bali_ds.graph.identifiers import split_vocabularies
from bali_ds.graph.knowledge_graph import KnowledgeGraph

_BATCH = 1 << 14
"""Concepts whose facts are read at a time."""


def export_graph(graph: KnowledgeGraph, format: str, out: Path, *, overwrite: bool = False) -> list[Path]:  # noqa: A002
    """Write a graph as files of a format and return their paths.

    Args:
        graph: the graph.
        format: a key of `FORMATS`.
        out: the folder of the files; it is made if it does not exist, and other files in it are kept.
        overwrite: whether files of these names are replaced.

    Raises:
        InputError: a file already exists, or cannot be written.
    """
    written = [out / name for name in FORMATS[format]]
    if not overwrite and (present := [path for path in written if path.exists()]):
        raise InputError(f"{present[0]}: already exists; pass --overwrite to replace it, or another --out")
    for path, write in zip(written, FORMATS[format].values(), strict=True):
        with published_file(path, "w") as stream:
            write(graph, stream)
    return written


def dictionary_lines(graph: KnowledgeGraph) -> Iterator[str]:
    """Yield `CUI||name` for every name, the preferred name of a concept first."""
    for concept_id in range(graph.num_concepts):
        cui = graph.cui(concept_id)
        yield from (f"{cui}||{_one_line(name)}" for name in graph.names(concept_id))


def _one_line(text: str) -> str:
    """Return a text without tabs and newlines, which end fields and rows."""
    return " ".join(text.split())


def _facts(graph: KnowledgeGraph) -> Iterator[tuple[str, str, str, str]]:
    """Yield each fact once, as head, relation, tail, source."""
    for start in range(0, graph.num_concepts, _BATCH):
        offsets = graph.edge_offsets[start : start + _BATCH + 1].astype(np.int64)
        heads = np.repeat(np.arange(start, start + len(offsets) - 1), np.diff(offsets))
        row = slice(int(offsets[0]), int(offsets[-1]))
        columns = (heads, graph.edge_relations[row], graph.edge_targets[row], graph.edge_sources[row])
        for head, relation, tail, source in zip(*(column.tolist() for column in columns), strict=True):
            if relation < graph.num_relations:
                yield graph.cui(head), graph.relation_name(relation), graph.cui(tail), graph.sources[source]


def _write_scispacy(graph: KnowledgeGraph, stream: IO[str]) -> None:
    """Write the JSON lines that scispaCy's KnowledgeBase reads."""
    for concept_id in range(graph.num_concepts):
        value: dict[str, Any] = {
            "concept_id": graph.cui(concept_id),
            "canonical_name": graph.preferred_name(concept_id),
            "aliases": graph.names(concept_id)[1:],
            "types": list(graph.semantic_types(concept_id)),
        }
        definitions = graph.definitions(concept_id)
        if definitions:
            value["definition"] = definitions[0]
        stream.write(json.dumps(value, ensure_ascii=False) + "\n")


def _write_triples(graph: KnowledgeGraph, stream: IO[str]) -> None:
    """Write the table without header that PyKEEN's TriplesFactory.from_path reads."""
    stream.writelines(f"{head}\t{relation}\t{tail}\n" for head, relation, tail, _ in _facts(graph))


def _write_neo4j_nodes(graph: KnowledgeGraph, stream: IO[str]) -> None:
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(["cui:ID", "name", "synonyms:string[]", ":LABEL"])
    for concept_id in range(graph.num_concepts):
        synonyms = ";".join(name.replace(";", ",") for name in graph.names(concept_id)[1:])
        labels = ";".join(["Concept", *graph.semantic_types(concept_id)])
        table.writerow([graph.cui(concept_id), graph.preferred_name(concept_id), synonyms, labels])


def _write_neo4j_edges(graph: KnowledgeGraph, stream: IO[str]) -> None:
    table = csv.writer(stream, lineterminator="\n")
    table.writerow([":START_ID", ":TYPE", ":END_ID", "sources:string[]"])
    for head, relation, tail, source in _facts(graph):
        table.writerow([head, relation, tail, ";".join(split_vocabularies(source))])


def _write_kgx_nodes(graph: KnowledgeGraph, stream: IO[str]) -> None:
    stream.write("id\tcategory\tname\tsynonym\n")
    for concept_id in range(graph.num_concepts):
        name, synonyms = graph.preferred_name(concept_id), "|".join(graph.names(concept_id)[1:])
        fields = [_curie(graph.cui(concept_id)), "biolink:NamedThing", _one_line(name), _one_line(synonyms)]
        stream.write("\t".join(fields) + "\n")


def _write_kgx_edges(graph: KnowledgeGraph, stream: IO[str]) -> None:
    stream.write("subject\tpredicate\tobject\trelation\tknowledge_source\n")
    for head, relation, tail, source in _facts(graph):
        stream.write(f"{_curie(head)}\tbiolink:related_to\t{_curie(tail)}\t{relation}\t{source}\n")


def _curie(cui: str) -> str:
    return cui if ":" in cui else f"UMLS:{cui}"


FORMATS: dict[str, dict[str, Callable[[KnowledgeGraph, IO[str]], None]]] = {
    "scispacy": {"knowledge_base.jsonl": _write_scispacy},
    "pykeen": {"triples.tsv": _write_triples},
    "neo4j": {"nodes.csv": _write_neo4j_nodes, "edges.csv": _write_neo4j_edges},
    "kgx": {"nodes.tsv": _write_kgx_nodes, "edges.tsv": _write_kgx_edges},
}
"""The files of each format and what writes them."""
