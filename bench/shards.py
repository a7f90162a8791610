"""Abstracts per second and core, from MEDLINE XML to shard samples linked with a dictionary of a million names.

    python bench/shards.py [--graph GRAPH] [--data FOLDER_OF_REAL_DATA] [--tokenizer NAME]

The XML has real citation records with the titles and abstracts of MedMentions. The graph is the given one with distinct
names added that are composed of its own words. Times are CPU seconds of one process that has already read as many other
abstracts (a file of the PubMed baseline holds 30,000). Writes bench/results/shards.json.
"""

import argparse
import gzip
import os
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch
from xml.sax.saxutils import escape

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from inputs.medmentions import minilm

from bali_ds.corpus import passages
from bali_ds.corpus.dictionary_linker import DictionaryLinker
from bali_ds.corpus.document import Document, ReadReport
from bali_ds.corpus.name_index import open_dictionary
from bali_ds.corpus.readers import read_documents
from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.files import write_json
from bali_ds.graph.builder import build_graph
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.graph.tables import TableSource
from bali_ds.shards import part
from bali_ds.shards.build_settings import BuildSettings, Corpus
from bali_ds.shards.part import PartTask, build_part
from bali_ds.shards.sample import Sample

ROOT = Path(__file__).parents[1]
PUBMED = 37_000_000
CORES = 64
STAGES: dict[str, tuple[Any, str]] = {
    "link": (DictionaryLinker, "link"),
    "tokenize": (Tokenizer, "encode_batch"),
    "cut passages": (passages, "_cut_document"),
    "draw neighborhoods": (part, "_neighborhoods"),
    "encode samples": (Sample, "to_bytes"),
}


def write_medline(path: Path, data: Path, first: int, documents: int) -> None:
    """Write real citation records with titles and abstracts of MedMentions, starting with number `first`."""
    sample = (data / "pubmed_xml" / "medsamp2006.xml").read_text(encoding="utf-8")
    records = [record for record in sample.split("<MedlineCitation ")[1:] if "<AbstractText>" in record]
    corpus = data / "corpora" / "medmentions_st21pv_train.pubtator.txt.gz"
    texts = [document.text for document in read_documents("pubtator", corpus, ReadReport())]
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=6) as stream:
        stream.write("<PubmedArticleSet>\n")
        for number in range(first, first + documents):
            record = records[number % len(records)].split("</MedlineCitation>")[0]
            title, _, abstract = texts[number % len(texts)].partition(". ")
            record = _replace(record, "PMID", str(number + 1))
            record = _replace(record, "ArticleTitle", escape(title))
            record = _replace(record, "AbstractText", escape(abstract))
            stream.write(f"<PubmedArticle><MedlineCitation {record}</MedlineCitation></PubmedArticle>\n")
        stream.write("</PubmedArticleSet>\n")


def _replace(record: str, tag: str, text: str) -> str:
    head, _, rest = record.partition(f"<{tag}>")
    return f"{head}<{tag}>{text}{rest[rest.index(f'</{tag}>') :]}"


def write_graph(out: Path, graph: KnowledgeGraph, names: int) -> KnowledgeGraph:
    """Build the given graph with names of two to five of its own words added, up to `names` in all."""
    draw = random.Random(1)
    words = [word for number in range(graph.num_names) for word in graph.name(number).split() if word.isalpha()]
    extra = -(-(names - graph.num_names) // graph.num_concepts)
    taken: set[str] = set()
    with open(out / "nodes.tsv", "w", encoding="utf-8") as stream:
        stream.write("cui\tpreferred_name\tsynonyms\tsemantic_types\tsource_terms\n")
        for concept in range(graph.num_concepts):
            own = graph.names(concept) or [graph.cui(concept)]
            more = _new_names(draw, words, taken, max(extra, 0))
            types = ";".join(graph.semantic_types(concept))
            stream.write(f"{graph.cui(concept)}\t{own[0]}\t{'|'.join([*own[1:], *more])}\t{types}\t\n")
    with open(out / "edges.tsv", "w", encoding="utf-8") as stream:
        stream.write("head_cui\trelation\ttail_cui\tsource\n")
        for concept in range(graph.num_concepts):
            for at in range(int(graph.edge_offsets[concept]), int(graph.edge_offsets[concept + 1])):
                relation = int(graph.edge_relations[at])
                if relation < graph.num_relations:
                    fact = graph.cui(concept), graph.relation_name(relation), graph.cui(int(graph.edge_targets[at]))
                    stream.write("\t".join((*fact, "MADE")) + "\n")
    build_graph([TableSource(out / "nodes.tsv", out / "edges.tsv")], out / "graph")
    return KnowledgeGraph.open(out / "graph")


def _new_names(draw: random.Random, words: list[str], taken: set[str], count: int) -> list[str]:
    names: list[str] = []
    while len(names) < count:
        name = " ".join(draw.choices(words, k=draw.randint(2, 5)))
        if name.lower() not in taken:
            taken.add(name.lower())
            names.append(name)
    return names


def cpu_seconds(before: PartTask, task: PartTask, target: Path) -> float:
    """Return the cost of one part in a process that has made only the part before."""
    part._tools.cache_clear()
    build_part(before, target)
    start = time.process_time()
    build_part(task, target)
    return time.process_time() - start


def stages(before: PartTask, task: PartTask, target: Path) -> dict[str, float]:
    """Return the CPU seconds of each stage of one part, and of everything else as "rest"."""
    spent: defaultdict[str, float] = defaultdict(float)

    def timed(stage: str, function: Any) -> Any:
        def run(*arguments: Any) -> Any:
            start = time.process_time()
            result = function(*arguments)
            spent[stage] += time.process_time() - start
            return result

        return run

    def reading(corpus: Corpus, report: ReadReport) -> Iterator[Document]:
        documents = corpus_documents(corpus, report)
        return iter(timed("read XML", lambda: next(documents, None)), None)

    corpus_documents = Corpus.documents
    with ExitStack() as patches:
        patches.enter_context(patch.object(Corpus, "documents", reading))
        for stage, (owner, name) in STAGES.items():
            patches.enter_context(patch.object(owner, name, timed(stage, getattr(owner, name))))
        part._tools.cache_clear()
        build_part(before, target)
        spent.clear()
        start = time.process_time()
        build_part(task, target)
        total = time.process_time() - start
    return {
        "read XML": spent["read XML"],
        **{stage: spent[stage] for stage in STAGES},
        "rest": total - sum(spent.values()),
    }


def main() -> None:
    """Measure and print."""
    data = Path(os.environ.get("BALI_REAL_DATA", ROOT.parent / "shared/data"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graph", type=Path, help="default: that of the real data")
    parser.add_argument("--data", type=Path, default=data)
    parser.add_argument("--tokenizer", default=str(minilm()))
    parser.add_argument("--documents", type=int, default=1317)
    parser.add_argument("--names", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = [folder / "before.xml.gz", folder / "medline.xml.gz"]
        for number, path in enumerate(inputs):
            write_medline(path, options.data, number * options.documents, options.documents)
        graph = write_graph(folder, given_graph(options.graph, options.data, folder), options.names)
        start = time.process_time()
        open_dictionary(folder / "dictionary", graph)
        dictionary_seconds = time.process_time() - start
        before, task = (
            PartTask(
                Corpus("medline", path), folder / "graph", options.tokenizer, folder / "dictionary", BuildSettings()
            )
            for path in inputs
        )
        turns = [cpu_seconds(before, task, folder / "part") for _ in range(options.repeat)]
        parts = stages(before, task, folder / "part")
    rate, best = (options.documents / seconds for seconds in (statistics.median(turns), min(turns)))
    hours = PUBMED / (rate * CORES) / 3600
    whole = sum(parts.values())
    result = {
        "documents": options.documents,
        "names": graph.num_names,
        "dictionary_seconds": dictionary_seconds,
        "abstracts_per_second_and_core": rate,
        "best_turn": best,
        "load_average": os.getloadavg()[0],
        "cores": os.cpu_count(),
        "all_of_pubmed_hours_on_64_cores": hours,
        "microseconds_per_abstract": {stage: spent / options.documents * 1e6 for stage, spent in parts.items()},
    }
    print(f"{graph.num_names:,} names; dictionary made in {dictionary_seconds:.1f} s of CPU time")
    print(f"{rate:.0f} abstracts/s and core, {best:.0f} in the best of {len(turns)} turns")
    print(f"load average {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores, which costs CPU time too")
    print(f"all of PubMed on {CORES} cores: {hours * 60:.0f} minutes")
    for stage, spent in parts.items():
        print(f"  {stage:22}{spent / options.documents * 1e6:8.0f} µs{spent / whole:8.1%}")
    write_json(Path(__file__).parent / "results" / "shards.json", result)


def given_graph(path: Path | None, data: Path, folder: Path) -> KnowledgeGraph:
    """Open the graph, or build it from the real data."""
    if path is None:
        path = folder / "given"
        tables = data / "kg" / "kg_ext_umls"
        build_graph([TableSource(tables / "nodes.tsv.gz", tables / "edges.tsv.gz")], path)
    return KnowledgeGraph.open(path)


if __name__ == "__main__":
    main()
