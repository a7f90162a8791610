"""The merged ontologies as RRF and as tables, compared with plain Python readings of the same files."""

import csv
import gzip
from collections import defaultdict

import pytest

from bali_ds.graph.builder import build_graph
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.graph.rrf import RrfSource
from bali_ds.graph.tables import TableSource
from tests.graph.plain_rrf import joined_sources


@pytest.fixture(scope="module")
def graphs(real_data, tmp_path_factory):
    folder, out = real_data / "kg", tmp_path_factory.mktemp("graphs")
    build_graph([RrfSource(folder / "kg_ext_umls_rrf")], out / "rrf")
    tables = TableSource(*(folder / "kg_ext_umls" / f"{name}.tsv.gz" for name in ("nodes", "edges")))
    build_graph([tables], out / "tsv")
    return KnowledgeGraph.open(out / "rrf", verify=True), KnowledgeGraph.open(out / "tsv", verify=True)


def rows(path):
    with gzip.open(path, "rt", encoding="utf-8", newline="") as lines:
        yield from csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)


def test_rrf_and_tables_give_one_graph(graphs):
    first, second = graphs
    assert first.fingerprint == second.fingerprint
    for column in ("concepts.cuis", "names.text", "names.offsets", "edges.offsets", "edges.entries"):
        assert (first.path / f"{column}.npy").read_bytes() == (second.path / f"{column}.npy").read_bytes()


def test_rrf_and_tables_with_equal_content_give_equal_bytes(graphs, real_data, tmp_path):
    """The RRF lacks some codes and types of the table; with the same rows in both, all files are equal."""
    folder = real_data / "kg"
    codes, types = defaultdict(set), defaultdict(set)
    for name, found in (("MRCONSO", codes), ("MRSTY", types)):
        with gzip.open(folder / f"kg_ext_umls_rrf/{name}.RRF.gz", "rt", encoding="utf-8") as lines:
            for fields in (line.split("|") for line in lines):
                prefixed = name == "MRSTY" or ":" in fields[13]
                found[fields[0]].add(
                    fields[1] if name == "MRSTY" else fields[13] if prefixed else f"{fields[11]}:{fields[13]}"
                )
    with open(tmp_path / "nodes.tsv", "w", encoding="utf-8") as table:
        table.write("cui\tpreferred_name\tsynonyms\tsemantic_types\tsource_terms\n")
        for row in rows(folder / "kg_ext_umls/nodes.tsv.gz"):
            cui = row["cui"]
            assert types[cui] <= set(row["semantic_types"].split(";"))
            said = ";".join(sorted(types[cui])), ";".join(sorted(codes[cui]))
            table.write("\t".join([cui, row["preferred_name"], row["synonyms"], *said]) + "\n")
    build_graph([TableSource(tmp_path / "nodes.tsv", folder / "kg_ext_umls/edges.tsv.gz")], tmp_path / "graph")
    files = sorted(path.name for path in graphs[0].path.iterdir())
    assert files == sorted(path.name for path in (tmp_path / "graph").iterdir())
    assert [
        name for name in files if (graphs[0].path / name).read_bytes() != (tmp_path / "graph" / name).read_bytes()
    ] == []


def test_names_types_and_codes_are_those_of_the_table(graphs, real_data):
    graph = graphs[1]
    for row in rows(real_data / "kg/kg_ext_umls/nodes.tsv.gz"):
        concept = int(graph.lookup([row["cui"]])[0])
        assert graph.preferred_name(concept) == row["preferred_name"]
        synonyms = set(filter(None, row["synonyms"].split("|"))) - {row["preferred_name"]}
        assert sorted(synonyms, key=str.encode) == graph.names(concept)[1:]
        assert list(graph.semantic_types(concept)) == sorted(filter(None, row["semantic_types"].split(";")))
        for code in row["source_terms"].split(";"):
            assert row["cui"] in graph.code_to_cuis("", code)


def test_facts_are_those_of_the_relation_file(graphs, real_data):
    graph = graphs[0]
    expected = defaultdict(set)
    with gzip.open(real_data / "kg/kg_ext_umls_rrf/MRREL.RRF.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            tail, _, _, rel, head, _, _, rela, _, _, source, *_ = line.split("|")
            words = {"CHD": "child_of", "PAR": "parent_of"}
            expected[head].add((rela or words[rel], tail, source))
    for concept in range(0, graph.num_concepts, 7):
        row = slice(graph.edge_offsets[concept], graph.edge_offsets[concept + 1])
        columns = (column[row].tolist() for column in (graph.edge_relations, graph.edge_targets, graph.edge_sources))
        found = {
            (graph.relation_name(relation), graph.cui(target), graph.sources[source])
            for relation, target, source in zip(*columns, strict=True)
        }
        wanted = {
            ("", name.replace("inverse_of_", "inverse_"), tail, source)
            for name, tail, source in expected[graph.cui(concept)]
        }
        assert found == {fact[1:] for fact in joined_sources(wanted)}
