"""Commands that put a trained model to work."""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bali_ds.cli.common import dictionary_beside, emit
from bali_ds.errors import InputError

LINES_AT_ONCE = 16_384


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this group's commands to the program."""
    _add_encode(commands)
    _add_link(commands)
    _add_context(commands)


def _add_encode(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    encode = commands.add_parser(
        "encode", help="lines of text to vectors", description="Write one unit vector a line of FILE as float32 npy."
    )
    _add_model(encode)
    encode.add_argument("file", metavar="FILE", help="one text a line, plain or gzip")
    encode.add_argument("--out", type=Path, required=True, metavar="NPY", help="the array to write, [lines, d]")
    encode.set_defaults(run=_encode)


def _add_link(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    link = commands.add_parser(
        "link",
        help="mentions to concepts",
        description="Print, for each mention, the nearest concepts of a dictionary or graph as tab-separated lines: "
        "mention, CUI, name, cosine.",
    )
    _add_model(link)
    names = link.add_mutually_exclusive_group(required=True)
    names.add_argument("--dictionary", type=Path, metavar="FILE", help="CUI||name lines, plain or gzip")
    names.add_argument("--graph", type=Path, metavar="GRAPH", help="all names of a graph")
    link.add_argument("--index", type=Path, metavar="DIR", help="keep the names' vectors here for the next time")
    link.add_argument("--approximate", action="store_true", help="faster search among millions of names (faiss)")
    link.add_argument("--top", type=int, default=1, metavar="N", help="concepts a mention (default 1)")
    link.add_argument("--json", action="store_true", help="print one JSON object a line")
    link.add_argument("file", metavar="FILE", help="one mention a line; - reads the standard input")
    link.set_defaults(run=_link)


def _add_context(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    context = commands.add_parser(
        "context",
        help="the facts of a graph that bear on a question",
        description="Find the question's concepts in the graph and print the facts around them that are nearest to it, "
        "as text for a prompt.",
    )
    _add_model(context)
    context.add_argument("--graph", type=Path, required=True, metavar="GRAPH")
    context.add_argument("--tokens", type=int, default=256, metavar="N", help="budget for all facts (default 256)")
    context.add_argument(
        "--lowest-score", type=float, default=0.0, metavar="S", help="leave out facts below this cosine"
    )
    context.add_argument("--json", action="store_true", help="print JSON: concepts, facts with provenance, text")
    context.add_argument("question")
    context.set_defaults(run=_context)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="an exported or Hugging Face encoder")
    parser.add_argument("--device", default="cpu", help="where the model computes (default cpu)")


def _encode(options: argparse.Namespace) -> None:
    import numpy as np
    from tqdm import tqdm

    from bali_ds.files import published_file
    from bali_ds.inference.encoder import load

    encoder = load(options.model, device=options.device)
    count = sum(len(lines) for lines in _blocks(options.file))
    header = {"descr": "<f4", "fortran_order": False, "shape": (count, encoder.width)}
    with published_file(options.out) as stream, tqdm(total=count, unit=" lines") as bar:
        np.lib.format.write_array_header_1_0(stream, header)
        for lines in _blocks(options.file):
            stream.write(encoder.encode(lines).astype("<f4").tobytes())
            bar.update(len(lines))
    print(f"{options.out}: {count:,} vectors of {encoder.width}")


def _link(options: argparse.Namespace) -> None:
    from bali_ds.graph.knowledge_graph import KnowledgeGraph
    from bali_ds.inference.concept_dictionary import graph_dictionary, read_dictionary
    from bali_ds.inference.encoder import load
    from bali_ds.inference.linker import Linker

    if options.top < 1:
        raise InputError("--top: name at least one concept a mention")
    encoder = load(options.model, device=options.device)
    if options.graph:
        dictionary = graph_dictionary(KnowledgeGraph.open(options.graph))
    else:
        dictionary = read_dictionary(options.dictionary)
    linker = Linker.build(encoder, dictionary, index=options.index, approximate=options.approximate, progress=True)
    for mentions in _blocks(options.file):
        for mention, candidates in zip(mentions, linker.link(mentions, top=options.top), strict=True):
            if options.json:
                found = [asdict(candidate) for candidate in candidates]
                print(json.dumps({"mention": mention, "candidates": found}, ensure_ascii=False))
            else:
                for candidate in candidates:
                    print(mention, candidate.cui, candidate.name, f"{candidate.score:.4f}", sep="\t")


def _context(options: argparse.Namespace) -> None:
    from bali_ds.corpus.name_index import open_dictionary
    from bali_ds.graph.knowledge_graph import KnowledgeGraph
    from bali_ds.inference.context import ContextFinder
    from bali_ds.inference.encoder import load

    graph = KnowledgeGraph.open(options.graph)
    dictionary = open_dictionary(dictionary_beside(options.graph), graph)
    finder = ContextFinder(load(options.model, device=options.device), graph, dictionary)
    found = finder.find(options.question, token_budget=options.tokens, lowest_score=options.lowest_score)
    result: dict[str, Any] = {**asdict(found), "text": found.text}
    emit(result, options.json, lambda: found.text or "no concept of the graph is named in the question")


def _blocks(file: str) -> Iterator[list[str]]:
    """Yield the lines of a file, `-` for the standard input, without their ends."""
    from bali_ds.files import open_text

    block: list[str] = []
    try:
        with sys.stdin if file == "-" else open_text(Path(file)) as stream:
            for line in stream:
                block.append(line.rstrip("\r\n"))
                if len(block) == LINES_AT_ONCE:
                    yield block
                    block = []
    except (UnicodeDecodeError, EOFError, OSError) as error:
        raise InputError(f"{file}: cannot be read as UTF-8 text or gzip: {error}") from error
    if block:
        yield block
