"""Commands that use a trained model: `encode`, `link` and `context`."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bali_ds.cli.common import add_device, add_json, emit
from bali_ds.cli.scoring import add_scoring, open_linker, scoring_of
from bali_ds.errors import InputError
from bali_ds.files import lines_of, numbered_lines
from bali_ds.terminal import json_line, printable

if TYPE_CHECKING:
    from bali_ds.inference.linker import Candidate

LINES_AT_ONCE = 16_384


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this group's commands to the program."""
    _add_encode(commands)
    _add_link(commands)
    _add_context(commands)


def _add_encode(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    encode = commands.add_parser(
        "encode",
        help="encode lines of text as vectors",
        description="Encode each line of FILE as a unit vector and write them as a float32 npy file.",
    )
    _add_model(encode)
    encode.add_argument("file", metavar="FILE", help="plain or gzip file with one text per line")
    encode.add_argument(
        "--out", type=Path, required=True, metavar="NPY", help="npy file to write, shape [lines, dimensions]"
    )
    encode.add_argument(
        "--query", action="store_true", help="the lines are queries: put the model's prompt before each"
    )
    encode.set_defaults(run=_encode)


def _add_link(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    link = commands.add_parser(
        "link",
        help="link mentions to concepts",
        description="Print the most similar concepts of a dictionary or graph for each mention, as tab-separated "
        "lines: mention, CUI, name, score; the score is a cosine where mentions are compared with names alone. With "
        "--in-context, document, start and end precede the mention. The JSON objects are what a language model needs "
        "for choosing among the candidates.",
    )
    _add_model(link)
    names = link.add_mutually_exclusive_group(required=True)
    names.add_argument("--dictionary", type=Path, metavar="FILE", help="plain or gzip file of CUI||name lines")
    names.add_argument("--graph", type=Path, metavar="GRAPH", help="link to all names of a graph")
    link.add_argument("--index", type=Path, metavar="DIR", help="directory that caches the vectors of the names")
    link.add_argument("--approximate", action="store_true", help="approximate search with faiss, for millions of names")
    link.add_argument("--top", type=int, default=1, metavar="N", help="concepts per mention (default: %(default)s)")
    link.add_argument("--json", action="store_true", help="print one JSON object per mention")
    add_scoring(link)
    link.add_argument(
        "file", metavar="FILE",
        help="plain or gzip file with one mention per line, - for stdin; with --in-context a corpus as FORMAT:PATH, "
        "whose mentions are linked",
    )  # fmt: skip
    link.set_defaults(run=_link)


def _add_context(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    context = commands.add_parser(
        "context",
        help="retrieve facts of a graph as context for a question",
        description="Find the concepts of a question in a graph and print the facts around them that are most similar "
        "to the question, as text for a prompt.",
    )
    _add_model(context)
    context.add_argument("--graph", type=Path, required=True, metavar="GRAPH", help="graph directory")
    context.add_argument(
        "--tokens", type=int, default=256, metavar="N", help="maximum tokens of all facts (default: %(default)s)"
    )
    context.add_argument(
        "--lowest-score",
        type=float,
        default=0.0,
        metavar="S",
        help="drop facts below this cosine (default: %(default)s)",
    )
    context.add_argument(
        "--index", type=Path, metavar="DIR",
        help="vectors of the graph's names, written at first use: finds concepts that the question does not name",
    )  # fmt: skip
    add_json(context, "concepts, facts with their sources, and text")
    context.add_argument("question", metavar="QUESTION", help="question in natural language")
    context.set_defaults(run=_context)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="exported or Hugging Face encoder")
    add_device(parser)


def _encode(options: argparse.Namespace) -> None:
    from bali_ds.files import published_file
    from bali_ds.inference.encoder import load
    from bali_ds.progress_bar import progress_bar
    from bali_ds.shards.layout import npy_header

    encoder = load(options.model, device=options.device)
    count = 0
    with published_file(options.out) as stream, progress_bar("encode", None, "lines") as bar:
        # The number of lines is known at the end: standard input can be read only once.
        stream.write(npy_header("<f4", (0, encoder.width)))
        for lines in _batches_of_lines(options.file):
            stream.write(encoder.encode(lines, query=options.query).astype("<f4").tobytes())
            count += len(lines)
            bar.update(len(lines))
        stream.seek(0)
        stream.write(npy_header("<f4", (count, encoder.width)))
    print(f"{options.out}: {count:,} vectors of {encoder.width}")


def _link(options: argparse.Namespace) -> None:
    from bali_ds.corpus.corpus_files import corpus_documents
    from bali_ds.graph.knowledge_graph import KnowledgeGraph
    from bali_ds.inference.concept_dictionary import graph_dictionary, read_dictionary
    from bali_ds.inference.concept_scorer import Scoring
    from bali_ds.inference.encoder import load
    from bali_ds.inference.linker import Linker

    if options.top < 1:
        raise InputError(f"--top {options.top}: must be at least 1")
    by_names_alone = scoring_of(options) == Scoring()
    if options.graph:
        dictionary = graph_dictionary(KnowledgeGraph.open(options.graph))
    else:
        dictionary = read_dictionary(options.dictionary)
    if by_names_alone:
        encoder = load(options.model, device=options.device)
        linker = Linker.build(encoder, dictionary, index=options.index, approximate=options.approximate, progress=True)
        for mentions in _batches_of_lines(options.file):
            _print_candidates([{"mention": each} for each in mentions], linker.link(mentions, top=options.top), options)
        return
    if options.index or options.approximate:
        raise InputError("--index and --approximate: only for names alone; leave them out, or use --graph-index")
    scored = open_linker(options.model, dictionary, options)
    if not options.in_context:
        for mentions in _batches_of_lines(options.file):
            _print_candidates([{"mention": each} for each in mentions], scored.link(mentions, top=options.top), options)
        return
    for document in corpus_documents(options.file):
        places = [(document.text, mention.start, mention.end) for mention in document.mentions]
        strings = [text[start:end] for text, start, end in places]
        labels = [
            {"document": document.id, "start": start, "end": end, "mention": string}
            for (_, start, end), string in zip(places, strings, strict=True)
        ]
        if places:
            _print_candidates(labels, scored.link(strings, places, top=options.top), options)


def _print_candidates(
    labels: Sequence[dict[str, Any]], found: "Sequence[Sequence[Candidate]]", options: argparse.Namespace
) -> None:
    for label, candidates in zip(labels, found, strict=True):
        if options.json:
            print(json_line({**label, "candidates": [asdict(candidate) for candidate in candidates]}))
            continue
        for candidate in candidates:
            columns = (*label.values(), candidate.cui, candidate.name, f"{candidate.score:.4f}")
            print(*(printable(str(column)) for column in columns), sep="\t")


def _context(options: argparse.Namespace) -> None:
    from bali_ds.inference.context import ContextFinder

    finder = ContextFinder.open(options.model, options.graph, device=options.device, index=options.index)
    found = finder.find(options.question, token_budget=options.tokens, lowest_score=options.lowest_score)
    result: dict[str, Any] = {**asdict(found), "text": found.text, "cited_text": found.cited_text}
    nothing = "no concept of the graph was found in the question; with --index DIR it is also searched by vectors"
    emit(result, options.json, lambda shown: shown["cited_text"] or nothing)


def _batches_of_lines(file: str) -> Iterator[list[str]]:
    """Yield the lines of a file, or of stdin for "-", without line ends, in batches."""
    numbered = lines_of(sys.stdin, "standard input") if file == "-" else numbered_lines(Path(file))
    lines = (line for _, line in numbered)
    while batch := list(islice(lines, LINES_AT_ONCE)):
        yield batch
