"""Commands that build, check and read training shards."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bali_ds.cli.common import add_overwrite, emit
from bali_ds.cli.order import add_order
from bali_ds.errors import InputError

if TYPE_CHECKING:
    from bali_ds.shards.build_settings import Corpus, NeighborSettings


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this group's commands to the program."""
    group = commands.add_parser("shards", help="build, check and read training shards")
    shards = group.add_subparsers(metavar="COMMAND", required=True)
    _add_build(shards)
    for name, run, text in (("stats", _stats, "counts of a shard set"), ("lint", _lint, "check every sample")):
        command = shards.add_parser(name, help=text)
        command.add_argument("shards", type=Path, metavar="SHARDS")
        command.add_argument("--json", action="store_true", help="print one JSON document")
        command.set_defaults(run=run)
        if name == "lint":
            command.add_argument("--graph", type=Path, help="check concepts, relations and facts against this graph")
    show = shards.add_parser("show", help="print one sample, readable")
    show.add_argument("shards", type=Path, metavar="SHARDS")
    show.add_argument("key", metavar="KEY", help="a sample's key or its row number")
    show.add_argument("--graph", type=Path, help="print names instead of concept ids")
    show.add_argument("--tokenizer", metavar="NAME", help="print text instead of token ids")
    show.add_argument("--json", action="store_true", help="print one JSON document")
    show.set_defaults(run=_show)
    index = shards.add_parser("index", help="rebuild index and sample table from the tars alone")
    index.add_argument("shards", type=Path, metavar="SHARDS")
    index.set_defaults(run=_index)
    sample = shards.add_parser("sample", help="a random subset as new shards")
    sample.add_argument("shards", type=Path, metavar="SHARDS")
    sample.add_argument("--samples", type=int, required=True, metavar="N")
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--out", type=Path, required=True, metavar="SHARDS")
    add_overwrite(sample)
    sample.set_defaults(run=_sample)
    merge = shards.add_parser("merge", help="several shard sets of one graph and tokenizer as one")
    merge.add_argument("shards", type=Path, nargs="+", metavar="SHARDS")
    merge.add_argument("--out", type=Path, required=True, metavar="SHARDS")
    add_overwrite(merge)
    merge.set_defaults(run=_merge)
    add_order(shards)


def _add_build(shards: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    build = shards.add_parser("build", help="documents to linked passages to tar shards and index")
    build.add_argument("--graph", type=Path, required=True)
    build.add_argument(
        "--corpus", nargs="+", action="extend", required=True, metavar="FORMAT:PATH", help="input files, in order"
    )
    build.add_argument(
        "--text", nargs="+", action="extend", default=[], metavar="FORMAT:PATH",
        help="files with the text of the --corpus files, one for each or one for all, joined by document id",
    )  # fmt: skip
    build.add_argument(
        "--link", choices=("gold", "dictionary"), default="",
        help="take the mentions of the files, or find names of the graph (default for files without mentions)",
    )  # fmt: skip
    build.add_argument("--tokenizer", required=True, metavar="NAME", help="model directory or name on the Hub")
    build.add_argument("--out", type=Path, required=True, metavar="SHARDS")
    add_overwrite(build)
    build.add_argument("--max-tokens", type=int, default=128, help="tokens of a passage, special ones included")
    build.add_argument("--max-name-tokens", type=int, default=32, help="tokens of a concept name")
    build.add_argument("--stored-fan-out", type=int, default=32, help="neighbors stored with each concept")
    build.add_argument("--shard-samples", type=int, default=4096, help="samples in a tar")
    build.add_argument("--validation", type=float, default=0.0, metavar="FRACTION", help="documents held out")
    build.add_argument("--keep-unlinked", action="store_true", help="keep passages without a linked mention")
    build.add_argument("--concept-cap", type=int, default=0, metavar="N", help="passages wanted of each concept")
    facts = build.add_argument_group("which facts are stored with a concept (default: any)")
    facts.add_argument(
        "--relation-weight", nargs="+", action="extend", default=[], metavar="NAME=WEIGHT",
        help="how much a fact of this relation counts among others; 1 without it, 0 stores none",
    )  # fmt: skip
    facts.add_argument("--fact-source", nargs="+", action="extend", default=[], metavar="SAB", help="only of these")
    facts.add_argument(
        "--largest-degree", type=int, default=0, metavar="N", help="no neighbors that have more facts than this"
    )
    where = build.add_mutually_exclusive_group()
    where.add_argument("--workers", type=int, default=1, metavar="N", help="processes on this host")
    where.add_argument("--mpi", action="store_true", help="ranks of the MPI job that this command was started in")
    build.add_argument("--json", action="store_true", help="print the report as one JSON document")
    build.set_defaults(run=_build)


def _build(options: argparse.Namespace) -> int:
    from bali_ds.shards.build import build_shards
    from bali_ds.shards.build_settings import BuildSettings
    from bali_ds.shards.pools import open_mpi_pool, open_pool
    from bali_ds.shards.summary import readable_report

    if options.workers < 1:
        raise InputError(f"--workers {options.workers}: must be at least 1")
    options.neighbors = _neighbors(options)
    settings = BuildSettings(**{name: getattr(options, name) for name in BuildSettings.__dataclass_fields__})
    with open_mpi_pool() if options.mpi else open_pool(options.workers) as pool:
        if pool is None:
            return 0
        corpora = _corpora(options)
        result = build_shards(
            corpora, options.graph, options.tokenizer, options.out, settings, pool, overwrite=options.overwrite
        )
    for failure in result.failures:
        print(f"bali-ds: skipped: {failure}", file=sys.stderr)
    fingerprint = result.index["fingerprint"]
    emit(
        {**result.report, "fingerprint": fingerprint},
        options.json,
        lambda: f"{readable_report(result.report)}\n{options.out}: {len(result.index['shards'])} shards, {fingerprint}",
    )
    return 1 if result.failures else 0


def _neighbors(options: argparse.Namespace) -> "NeighborSettings":
    from bali_ds.shards.build_settings import NeighborSettings

    weights = {}
    for entry in options.relation_weight:
        name, _, weight = entry.rpartition("=")
        try:
            weights[name] = float(weight)
        except ValueError:
            raise InputError(f"--relation-weight {entry}: is not NAME=WEIGHT, for example has_phenotype=0.1") from None
    return NeighborSettings(tuple(sorted(weights.items())), tuple(sorted(options.fact_source)), options.largest_degree)


def _corpora(options: argparse.Namespace) -> "list[Corpus]":
    from bali_ds.shards.build_settings import Corpus

    files = [_format_and_path(entry) for entry in options.corpus]
    texts = [_format_and_path(entry) for entry in options.text]
    if len(texts) not in (0, 1, len(files)):
        raise InputError(f"--text: {len(texts)} files for {len(files)} of --corpus; give one for each, or one for all")
    joined: list[tuple[str, Path] | None] = [*(texts * len(files) if len(texts) == 1 else texts)]
    pairs = zip(files, joined or [None] * len(files), strict=True)
    return [Corpus(name, path, options.link, text) for (name, path), text in pairs]


def _format_and_path(entry: str) -> tuple[str, Path]:
    name, separator, path = entry.partition(":")
    if not separator or not path:
        raise InputError(f"{entry}: is not FORMAT:PATH, for example pubtator:abstracts.txt.gz")
    return name, Path(path)


def _stats(options: argparse.Namespace) -> None:
    from bali_ds.shards.summary import statistics

    values = statistics(options.shards)
    emit(values, options.json, lambda: _table(str(options.shards), values))


def _lint(options: argparse.Namespace) -> int:
    from bali_ds.shards.lint import lint

    findings = lint(options.shards, options.graph)
    emit({"findings": findings}, options.json, lambda: "\n".join(findings) or f"{options.shards}: no findings")
    return 1 if findings else 0


def _show(options: argparse.Namespace) -> None:
    from bali_ds.shards.sample_display import readable, show

    value = show(options.shards, options.key, options.graph, options.tokenizer)
    emit(value, options.json, lambda: readable(value))


def _index(options: argparse.Namespace) -> None:
    from bali_ds.shards.tar_scanner import reindex

    _announce(options.shards, reindex(options.shards))


def _sample(options: argparse.Namespace) -> None:
    from bali_ds.shards.subset import sample_shards

    index = sample_shards(options.shards, options.out, options.samples, options.seed, overwrite=options.overwrite)
    _announce(options.out, index)


def _merge(options: argparse.Namespace) -> None:
    from bali_ds.shards.subset import merge_shards

    _announce(options.out, merge_shards(options.shards, options.out, overwrite=options.overwrite))


def _announce(path: Path, index: dict[str, Any]) -> None:
    passages = sum(shard["samples"] for shard in index["shards"])
    print(f"{path}: {passages} passages in {len(index['shards'])} shards, fingerprint {index['fingerprint']}")


def _table(title: str, values: dict[str, object]) -> str:
    width = max(len(name) for name in values)
    lines = [f"  {name.replace('_', ' '):{width}}  {value}" for name, value in values.items() if value != []]
    return "\n".join([title, *lines])
