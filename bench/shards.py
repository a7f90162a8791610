"""Abstracts a second and core from MEDLINE XML to shard samples, dictionary linking against a million names.

    python bench/shards.py --graph GRAPH --data FOLDER_OF_REAL_DATA [--documents 3000] [--names 1000000]

The XML is made of real citation records with the titles and abstracts of MedMentions; the graph is the given one with
made-up names of its own words added. Times are CPU seconds of one process. Writes bench/results/shards.json.
"""

import argparse
import cProfile
import gzip
import os
import pstats
import random
import statistics
import tempfile
import time
from pathlib import Path
from xml.sax.saxutils import escape

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from bali_ds.corpus.dictionary import open_dictionary
from bali_ds.corpus.document import ReadReport
from bali_ds.corpus.readers import read_documents
from bali_ds.files import write_json
from bali_ds.graph.builder import build_graph
from bali_ds.graph.store import KnowledgeGraph
from bali_ds.graph.tables import TableSource
from bali_ds.shards.part import BuildSettings, Corpus, PartTask, make_part

PUBMED = 37_000_000
STAGES = {
    "read XML": ("medline.py", "read_medline"),
    "link": ("linker.py", "link"),
    "tokenise": ("tokenizer.py", "encode_batch"),
    "cut passages": ("passages.py", "_cut_document"),
    "draw neighbourhoods": ("part.py", "_neighbourhoods"),
    "encode samples": ("sample.py", "to_bytes"),
}


def write_medline(path: Path, data: Path, documents: int) -> None:
    """Write real citation records whose titles and abstracts are those of MedMentions."""
    sample = (data / "pubmed_xml" / "medsamp2006.xml").read_text(encoding="utf-8")
    records = [record for record in sample.split("<MedlineCitation ")[1:] if "<AbstractText>" in record]
    corpus = data / "corpora" / "medmentions_st21pv_train.pubtator.txt.gz"
    texts = [document.text for document in read_documents("pubtator", corpus, ReadReport())]
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=6) as stream:
        stream.write("<PubmedArticleSet>\n")
        for number in range(documents):
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
    """Build the given graph with names of two to five of its own words added until there are `names`."""
    draw = random.Random(1)
    words = [word for number in range(graph.num_names) for word in graph.name(number).split() if word.isalpha()]
    extra = -(-(names - graph.num_names) // graph.num_concepts)
    with open(out / "nodes.tsv", "w", encoding="utf-8") as stream:
        stream.write("cui\tpreferred_name\tsynonyms\tsemantic_types\tsource_terms\n")
        for concept in range(graph.num_concepts):
            own = graph.names(concept) or [graph.cui(concept)]
            more = [" ".join(draw.choices(words, k=draw.randint(2, 5))) for _ in range(max(extra, 0))]
            stream.write(f"{graph.cui(concept)}\t{own[0]}\t{'|'.join([*own[1:], *more])}\tT047\t\n")
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


def profile(task: PartTask, target: Path) -> dict[str, float]:
    """Return each stage's share of the CPU time of one part."""
    profiler = cProfile.Profile()
    profiler.runcall(make_part, task, target)
    stats = pstats.Stats(profiler)
    total = stats.total_tt  # type: ignore[attr-defined]
    shares = {}
    for stage, (file, function) in STAGES.items():
        for (path, _, name), (_, _, _, cumulative, _) in stats.stats.items():  # type: ignore[attr-defined]
            if path.endswith(f"/{file}") and name == function:
                shares[stage] = cumulative / total
    return shares


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graph", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--documents", type=int, default=3000)
    parser.add_argument("--names", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_medline(folder / "medline.xml.gz", options.data, options.documents)
        graph = write_graph(folder, KnowledgeGraph.open(options.graph), options.names)
        start = time.process_time()
        open_dictionary(folder / "dictionary", graph)
        dictionary_seconds = time.process_time() - start
        corpus = Corpus("medline", folder / "medline.xml.gz")
        task = PartTask(corpus, folder / "graph", options.tokenizer, folder / "dictionary", BuildSettings())
        make_part(task, folder / "warm")
        rates = []
        for turn in range(options.repeat):
            start = time.process_time()
            make_part(task, folder / f"part{turn}")
            rates.append(options.documents / (time.process_time() - start))
        shares = profile(task, folder / "profiled")
    rate = statistics.median(rates)
    days = PUBMED / (rate * 64) / 86_400
    result = {
        "documents": options.documents,
        "names": graph.num_names,
        "dictionary_seconds": dictionary_seconds,
        "abstracts_per_second_and_core": rate,
        "all_of_pubmed_hours_on_64_cores": days * 24,
        "shares_under_the_profiler": shares,
    }
    print(f"{graph.num_names:,} names; dictionary made in {dictionary_seconds:.1f} s")
    print(f"{rate:.0f} abstracts/s and core; all of PubMed on 64 cores: {days * 24:.1f} h")
    for stage, share in shares.items():
        print(f"  {stage:22}{share:6.1%}")
    write_json(Path(__file__).parent / "results" / "shards.json", result)


if __name__ == "__main__":
    main()
