"""Precision and recall of the dictionary linker on corpora with gold links, beside a plain dictionary match.

    python bench/linker.py --graph GRAPH --data FOLDER_OF_REAL_DATA

Gold mentions whose concept is not in the graph are left out. Corpora annotate some semantic types alone, so precision
is also given over the predictions that overlap a gold mention. Writes bench/results/linker.json.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bali_ds.corpus.dictionary import open_dictionary
from bali_ds.corpus.document import Document, ReadReport
from bali_ds.corpus.linker import DictionaryLinker
from bali_ds.corpus.links import ConceptResolver
from bali_ds.corpus.readers import read_documents
from bali_ds.files import write_json
from bali_ds.graph.store import KnowledgeGraph

CORPORA = {
    "MedMentions ST21pv train": "corpora/medmentions_st21pv_train.pubtator.txt.gz",
    "BC5CDR train": "corpora/bc5cdr/cui_train.pubtator.txt.gz",
    "BC5CDR dev": "corpora/bc5cdr/cui_dev.pubtator.txt.gz",
    "NCBI Disease train": "corpora/ncbi_disease/cui_train.pubtator.txt.gz",
}
Link = tuple[int, int, int]
Linker = Callable[[Sequence[Document]], list[set[Link]]]


def plain_linker(graph: KnowledgeGraph) -> Linker:
    """Longest match of names in small letters at white space and punctuation: no folding, no choice, no stop list."""
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
    """The project's linker."""

    def link(documents: Sequence[Document]) -> list[set[Link]]:
        return [_links(document, resolver) for document in linker.link(documents)]

    return link


def _links(document: Document, resolver: ConceptResolver) -> set[Link]:
    return {(m.start, m.end, concept) for m in document.mentions for concept in resolver.concepts(m)}


def score(gold: Sequence[set[Link]], found: Sequence[set[Link]]) -> dict[str, float]:
    """Return precision and recall of exact span and concept, of concepts per document, and where spans overlap gold."""
    hits = sum(len(g & f) for g, f in zip(gold, found, strict=True))
    overlapping = sum(any(a < y and x < b for x, y, _ in g) for g, f in zip(gold, found, strict=True) for a, b, _ in f)
    concepts = [({c for *_, c in g}, {c for *_, c in f}) for g, f in zip(gold, found, strict=True)]
    shared = sum(len(g & f) for g, f in concepts)
    return {
        "gold": sum(map(len, gold)),
        "found": sum(map(len, found)),
        "precision": hits / max(sum(map(len, found)), 1),
        "recall": hits / max(sum(map(len, gold)), 1),
        "precision_on_gold_spans": hits / max(overlapping, 1),
        "document_precision": shared / max(sum(len(f) for _, f in concepts), 1),
        "document_recall": shared / max(sum(len(g) for g, _ in concepts), 1),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graph", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    graph = KnowledgeGraph.open(options.graph)
    resolver = ConceptResolver(graph)
    with tempfile.TemporaryDirectory() as folder:
        dictionary = open_dictionary(Path(folder) / "dictionary", graph)
        linkers = {
            "plain match": plain_linker(graph),
            "bali-ds": dictionary_linker(DictionaryLinker(dictionary, graph), resolver),
        }
        rows = []
        for corpus, name in CORPORA.items():
            documents = list(read_documents("pubtator", options.data / name, ReadReport()))
            gold = [_links(document, resolver) for document in documents]
            bare = [Document(document.id, document.text) for document in documents]
            for system, link in linkers.items():
                start = time.process_time()
                found = link(bare)
                seconds = time.process_time() - start
                rows.append({"corpus": corpus, "linker": system, **score(gold, found), "seconds": seconds})
                rows[-1]["documents_per_second"] = len(documents) / seconds
    columns = [key for key in rows[0] if key not in ("corpus", "linker")]
    print(f"{'corpus':26}{'linker':14}" + "".join(f"{column.replace('_', ' ')[:21]:>24}" for column in columns))
    for row in rows:
        values = "".join(f"{row[column]:24.3f}" for column in columns)
        print(f"{row['corpus']:26}{row['linker']:14}{values}")
    write_json(Path(__file__).parent / "results" / "linker.json", rows)


if __name__ == "__main__":
    main()
