"""Precision and recall of the dictionary linker on corpora with gold links, a plain match and published figures.

    python bench/linker.py [--graph GRAPH] [--data FOLDER_OF_REAL_DATA]

Gold mentions whose concept is not in the graph are excluded. Corpora annotate only some semantic types, so precision
is also given for the predictions that overlap a gold mention. Rows by semantic group compare the gold and the found
mentions of its concepts; those of symbols, the mentions that are written as symbols.

The curated genes of tmVar's 500 abstracts are identifiers of NCBI Gene, which the graph lacks: the link of a span that
is a gene there counts as right if its concept may be a gene or what a gene codes for, whichever that is. Spans that
tmVar does not annotate as genes do not count. The halves are documents by the hash of their id. BERN2's genes in the
abstracts of MedMentions are a tagger's, found again by their strings. "No symbol rules" is the linker without its rules
about symbols of genes and short symbols.

The published figures are for other systems, with the whole UMLS or MeSH as dictionary, on other splits: they give the
order of magnitude, not a comparison. Writes bench/results/linker.json.
"""

import argparse
import csv
import gzip
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

from bali_ds.corpus.concept_resolver import SEMANTIC_TYPES, ConceptResolver
from bali_ds.corpus.dictionary_linker import DictionaryLinker
from bali_ds.corpus.disambiguation import Disambiguator
from bali_ds.corpus.document import Document, ReadReport
from bali_ds.corpus.gene_context import GeneContext
from bali_ds.corpus.name_index import open_dictionary
from bali_ds.corpus.readers import read_documents
from bali_ds.corpus.short_symbols import ShortSymbols
from bali_ds.corpus.stopwords import is_written_as_symbol
from bali_ds.files import write_json
from bali_ds.graph.builder import build_graph
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.graph.tables import TableSource

ROOT = Path(__file__).parents[1]
HUNFLAIR = "arXiv:2402.12372; github.com/flairNLP/flair, resources/docs/HUNFLAIR2.md: end to end, +-1 character"
TAGGERONE = "arXiv:1902.09476, as told at emergentmind.com/articles/1902.09476"
METAMAP = "PMC8242017, table 2"
PUBLISHED = [
    ("MedMentions, diseases", "scispaCy", 0.4078, HUNFLAIR),
    ("MedMentions, diseases", "BENT", 0.4594, HUNFLAIR),
    ("MedMentions, diseases", "BERN2", 0.4733, HUNFLAIR),
    ("MedMentions, diseases", "PubTator Central", 0.4111, HUNFLAIR),
    ("MedMentions, diseases", "HunFlair2", 0.5727, HUNFLAIR),
    ("MedMentions, chemicals", "scispaCy", 0.3495, HUNFLAIR),
    ("MedMentions, chemicals", "BENT", 0.4090, HUNFLAIR),
    ("MedMentions, chemicals", "BERN2", 0.4179, HUNFLAIR),
    ("MedMentions, chemicals", "PubTator Central", 0.3128, HUNFLAIR),
    ("MedMentions, chemicals", "HunFlair2", 0.5117, HUNFLAIR),
    ("MedMentions ST21pv, mentions", "TaggerOne, trained on it", 0.453, TAGGERONE),
    ("MedMentions ST21pv, documents", "TaggerOne, trained on it", 0.548, TAGGERONE),
    ("NCBI Disease, mentions", "MetaMap", 0.641, METAMAP),
    ("NCBI Disease, mentions", "MetaMap Lite", 0.725, METAMAP),
]
"""Corpus, system, F1, source. No figures of QuickUMLS on these corpora were found."""
CORPORA = {
    "MedMentions ST21pv train": "corpora/medmentions_st21pv_train.pubtator.txt.gz",
    "BC5CDR train": "corpora/bc5cdr/cui_train.pubtator.txt.gz",
    "BC5CDR dev": "corpora/bc5cdr/cui_dev.pubtator.txt.gz",
    "NCBI Disease train": "corpora/ncbi_disease/cui_train.pubtator.txt.gz",
}
GENES = "annotation_formats/tmvar_500docs/goldstandard.txt.gz"
TAGGED_GENES = "annotation_formats/bern2_medmentions_train.tsv.gz"
Link = tuple[int, int, int]
Linker = Callable[[Sequence[Document]], list[set[Link]]]
OWN, NO_RULES = "bali-ds", "bali-ds, no symbol rules"


def plain_linker(graph: KnowledgeGraph) -> Linker:
    """Baseline: the longest lowercase name between white space or punctuation, without normalization."""
    names: dict[tuple[str, ...], int] = {}
    longest: dict[str, int] = {}
    for concept in range(graph.num_concepts):
        for name in graph.names(concept):
            words = tuple(name.lower().replace("-", " ").split())
            names.setdefault(words, concept)
            longest[words[0]] = max(longest.get(words[0], 0), len(words)) if words else 0

    def link(documents: Sequence[Document]) -> list[set[Link]]:
        return [set(_plain_links(document.text, names, longest)) for document in documents]

    return link


def _plain_links(text: str, names: dict[tuple[str, ...], int], longest: dict[str, int]) -> list[Link]:
    spans, words, at = [], [], 0
    for piece in text.lower().replace("-", " ").split(" "):
        word = piece.strip(".,;:()[]")
        if word:
            start = at + piece.index(word)
            spans.append((start, start + len(word)))
            words.append(word)
        at += len(piece) + 1
    links, first = [], 0
    while first < len(words):
        for length in range(min(longest.get(words[first], 0), len(words) - first), 0, -1):
            concept = names.get(tuple(words[first : first + length]))
            if concept is not None:
                links.append((spans[first][0], spans[first + length - 1][1], concept))
                first += length
                break
        else:
            first += 1
    return links


def dictionary_linker(linker: DictionaryLinker, resolver: ConceptResolver) -> Linker:
    """The linker of this project."""

    def link(documents: Sequence[Document]) -> list[set[Link]]:
        return [_links(document, resolver) for document in linker.link(documents)]

    return link


def _links(document: Document, resolver: ConceptResolver) -> set[Link]:
    return {(m.start, m.end, concept) for m in document.mentions for concept in resolver.resolve(m)}


def score(gold: Sequence[set[Link]], found: Sequence[set[Link]]) -> dict[str, float]:
    """Return precision and recall of span and concept, of concepts per document, and of spans that overlap gold."""
    hits = sum(len(g & f) for g, f in zip(gold, found, strict=True))
    overlapping = sum(any(a < y and x < b for x, y, _ in g) for g, f in zip(gold, found, strict=True) for a, b, _ in f)
    concepts = [({c for *_, c in g}, {c for *_, c in f}) for g, f in zip(gold, found, strict=True)]
    shared = sum(len(g & f) for g, f in concepts)
    totals = sum(map(len, gold)), sum(map(len, found))
    distinct = sum(len(g) for g, _ in concepts), sum(len(f) for _, f in concepts)
    return {
        "gold": totals[0],
        "found": totals[1],
        "precision": hits / max(totals[1], 1),
        "recall": hits / max(totals[0], 1),
        "f1": 2 * hits / max(sum(totals), 1),
        "precision_on_gold_spans": hits / max(overlapping, 1),
        "document_precision": shared / max(distinct[1], 1),
        "document_recall": shared / max(distinct[0], 1),
        "document_f1": 2 * shared / max(sum(distinct), 1),
    }


def of_group(links: Sequence[set[Link]], graph: KnowledgeGraph, group: str) -> list[set[Link]]:
    """Keep the links to concepts whose semantic type belongs to a group."""
    types = SEMANTIC_TYPES[group]
    return [{link for link in own if types.intersection(graph.semantic_types(link[2]))} for own in links]


def of_symbols(links: Sequence[set[Link]], documents: Sequence[Document]) -> list[set[Link]]:
    """Keep the links whose mention is written as a symbol: IgM, TNF, B12."""
    pairs = zip(links, documents, strict=True)
    return [{link for link in own if is_written_as_symbol(document.text[link[0] : link[1]])} for own, document in pairs]


@contextmanager
def no_symbol_rules() -> Iterator[None]:
    """Link without the rules about symbols of genes and short symbols."""
    with (
        patch.object(GeneContext, "gene_symbols", lambda *_: set()),
        patch.object(ShortSymbols, "needs_evidence", lambda *_: False),
    ):
        yield


def gene_rows(graph: KnowledgeGraph, link: Linker, data: Path) -> list[dict[str, Any]]:
    """Return the precision of links of gene mentions, of symbols and of other words."""
    curated = list(read_documents("pubtator", data / GENES, ReadReport()))
    spans = [{(m.start, m.end) for m in document.mentions if m.type == "Gene"} for document in curated]
    abstracts = list(read_documents("pubtator", data / CORPORA["MedMentions ST21pv train"], ReadReport()))
    tagged = _tagged_genes(data / TAGGED_GENES, abstracts)
    rows = []
    for system, changes in ((NO_RULES, no_symbol_rules()), (OWN, nullcontext())):
        with changes:
            found = gene_links(link, curated, spans)
            in_abstracts = gene_links(link, abstracts, tagged)
        for half, name in ((None, "tmVar"), (0, "tmVar, half 0"), (1, "tmVar, half 1")):
            own = [n for n, document in enumerate(curated) if half is None or _half(document.id) == half]
            parts = [[each[n] for n in own] for each in (curated, spans, found)]
            rows += _gene_precision(graph, name, system, *parts)
        rows += _gene_precision(graph, "MedMentions, by BERN2", system, abstracts, tagged, in_abstracts)
    return rows


def gene_links(link: Linker, documents: Sequence[Document], genes: Sequence[set[tuple[int, int]]]) -> list[set[Link]]:
    """Return the links of each document whose span is that of a gene."""
    found = link([Document(document.id, document.text) for document in documents])
    return [{each for each in links if each[:2] in spans} for links, spans in zip(found, genes, strict=True)]


def _gene_precision(
    graph: KnowledgeGraph,
    corpus: str,
    system: str,
    documents: Sequence[Document],
    genes: Sequence[set[tuple[int, int]]],
    found: Sequence[set[Link]],
) -> list[dict[str, Any]]:
    symbols = of_symbols(found, documents)
    words = [links - chosen for links, chosen in zip(found, symbols, strict=True)]
    judge, rows = GeneContext(graph), []
    for kind, links in (("gene symbols", symbols), ("gene names", words)):
        right = [judge.may_be_product(concept) for each in links for *_, concept in each]
        row = {"corpus": f"{corpus}, {kind}", "linker": system, "gold": sum(map(len, genes)), "found": len(right)}
        rows.append({**row, "precision": sum(right) / max(len(right), 1)})
    return rows


def _half(document_id: str) -> int:
    return hashlib.blake2b(document_id.encode(), digest_size=1).digest()[0] % 2


def _tagged_genes(file: Path, documents: Sequence[Document]) -> list[set[tuple[int, int]]]:
    """Return where each document has a string that BERN2 tagged as a gene in the original text (other offsets)."""
    strings: dict[str, set[str]] = {}
    with gzip.open(file, "rt", encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
            if row["type"] == "gene":
                strings.setdefault(row["pmid"], set()).add(row["mention"])
    return [
        {
            match.span()
            for string in strings.get(document.id, ())
            for match in re.finditer(rf"(?<!\w){re.escape(string)}(?!\w)", document.text)
        }
        for document in documents
    ]


def ambiguous_right(
    gold: Sequence[set[Link]], found: Sequence[set[Link]], shared: Sequence[set[tuple[int, int]]]
) -> float:
    """Return the accuracy on gold mentions that are found by a name of several concepts."""
    right, total = 0, 0
    for g, f, spans in zip(gold, found, shared, strict=True):
        wanted = {(a, b) for a, b, _ in g} & spans
        total += len(wanted & {(a, b) for a, b, _ in f})
        right += len({(a, b) for a, b, _ in g & f} & wanted)
    return right / max(total, 1)


def shared_spans(linker: DictionaryLinker, documents: Sequence[Document]) -> list[set[tuple[int, int]]]:
    """Return the spans of each document whose name belongs to several concepts."""
    matches = linker._matches([document.text for document in documents])
    heads, rows = linker._name_index.offsets, matches.rows
    many = [heads[row + 1] - heads[row] > 1 for row in rows]
    spans = list(zip(matches.starts, matches.ends, many, strict=True))
    bounds = matches.documents
    return [{(a, b) for a, b, several in spans[start:end] if several} for start, end in pairwise(bounds)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graph", type=Path, help="default: that of the real data")
    data = Path(os.environ.get("BALI_REAL_DATA", ROOT.parent / "shared/data"))
    parser.add_argument("--data", type=Path, default=data)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.graph is None:
            options.graph = Path(folder) / "graph"
            tables = options.data / "kg" / "kg_ext_umls"
            build_graph([TableSource(tables / "nodes.tsv.gz", tables / "edges.tsv.gz")], options.graph)
        graph = KnowledgeGraph.open(options.graph)
        linker = DictionaryLinker(open_dictionary(Path(folder) / "dictionary", graph), graph)
        rows = measure(graph, linker, options.data)
    columns = [key for key in rows[0] if key not in ("corpus", "linker")]
    print(f"{'corpus':36}{'linker':26}" + "".join(f"{column.replace('_', ' ')[:17]:>18}" for column in columns))
    for row in rows:
        values = "".join(f"{row[column]:18.3f}" if column in row else " " * 18 for column in columns)
        print(f"{row['corpus']:36}{row['linker']:26}{values}")
    print("\npublished, F1 (the whole UMLS or MeSH as dictionary; above, gold concepts of the graph alone count)")
    for corpus, system, value, source in PUBLISHED:
        print(f"{corpus:32}{system:28}{value:6.3f}   {source}")
    print("QuickUMLS: no figure on these corpora was to be had")
    published = [dict(zip(("corpus", "system", "f1", "source"), entry, strict=True)) for entry in PUBLISHED]
    write_json(Path(__file__).parent / "results" / "linker.json", {"measured": rows, "published": published})


def measure(graph: KnowledgeGraph, linker: DictionaryLinker, data: Path) -> list[dict[str, Any]]:
    """Return a row for each corpus and linker, and of this linker for each group of types and for symbols."""
    resolver = ConceptResolver(graph)
    plain, whole = plain_linker(graph), dictionary_linker(linker, resolver)
    rows: list[dict[str, Any]] = []
    for corpus, name in CORPORA.items():
        documents = list(read_documents("pubtator", data / name, ReadReport()))
        gold = [_links(document, resolver) for document in documents]
        bare = [Document(document.id, document.text) for document in documents]
        shared = shared_spans(linker, bare)
        systems: dict[str, tuple[Linker, AbstractContextManager[Any]]] = {
            "plain match": (plain, nullcontext()),
            "bali-ds, name alone": (whole, patch.object(Disambiguator, "choose", _first_candidates)),
            "bali-ds, without types": (whole, patch.object(Disambiguator, "types", lambda *_: ())),
            NO_RULES: (whole, no_symbol_rules()),
            OWN: (whole, nullcontext()),
        }
        found = {}
        for system, (link, changes) in systems.items():
            with changes:
                start = time.process_time()
                found[system] = link(bare)
                seconds = time.process_time() - start
            rows.append({"corpus": corpus, "linker": system, **score(gold, found[system])})
            rows[-1]["right_of_ambiguous"] = ambiguous_right(gold, found[system], shared)
            rows[-1]["documents_per_second"] = len(documents) / seconds
        for system in (NO_RULES, OWN):
            rows += _rows_of_groups(corpus.partition(" ST21pv")[0], system, bare, gold, found[system], graph)
    return [*rows, *gene_rows(graph, whole, data)]


def _first_candidates(_: Disambiguator, mentions: Sequence[Sequence[int]]) -> list[int]:
    return [candidates[0] for candidates in mentions]


def _rows_of_groups(
    corpus: str,
    system: str,
    documents: Sequence[Document],
    gold: Sequence[set[Link]],
    found: Sequence[set[Link]],
    graph: KnowledgeGraph,
) -> list[dict[str, Any]]:
    """Return a row for each group of types that has gold mentions, and one for symbols."""
    pairs = {}
    for group in ("disease", "chemical", "gene", "species"):
        name = group if group == "species" else f"{group}s"
        pairs[name] = of_group(gold, graph, group), of_group(found, graph, group)
    pairs["symbols"] = of_symbols(gold, documents), of_symbols(found, documents)
    return [
        {"corpus": f"{corpus}, {name}", "linker": system, **score(*pair)}
        for name, pair in pairs.items()
        if any(pair[0])
    ]


if __name__ == "__main__":
    main()
