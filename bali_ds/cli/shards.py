"""Commands for training shards: `shards build`, `stats`, `lint`, `show`, `index`, `sample`, `merge` and `order`."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bali_ds.cli.common import add_json, add_overwrite, emit, seed
from bali_ds.errors import InputError
from bali_ds.terminal import message, print_progress

if TYPE_CHECKING:
    from bali_ds.shards.build_settings import Corpus
    from bali_ds.shards.neighbor_settings import NeighborSettings


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this group's commands to the program."""
    group = commands.add_parser("shards", help="build, check and inspect training shards")
    shards = group.add_subparsers(metavar="COMMAND", required=True)
    _add_build(shards)
    stats = _add_reader(shards, "stats", "print counts and fingerprint of a shard set", _stats)
    add_json(stats)
    lint = _add_reader(shards, "lint", "check every sample of a shard set", _lint)
    lint.add_argument(
        "--graph", type=Path, metavar="GRAPH", help="also check concepts, relations and facts against this graph"
    )
    lint.add_argument(
        "--tokenizer", metavar="NAME",
        help="also check that this encoder reads the same tokens and has embeddings for them",
    )  # fmt: skip
    add_json(lint)
    show = _add_reader(shards, "show", "print a sample, or passages with their mentions marked", _show)
    show.add_argument("key", metavar="KEY", nargs="?", help="key or row number of the sample")
    show.add_argument("--random", type=int, metavar="N", help="instead of KEY: print so many passages chosen at random")
    show.add_argument("--seed", type=seed, default=0, metavar="N", help="random seed (default: %(default)s)")
    show.add_argument("--html", type=Path, metavar="FILE", help="write them as an HTML page")
    show.add_argument("--graph", type=Path, metavar="GRAPH", help="print concept names of this graph instead of ids")
    show.add_argument("--tokenizer", metavar="NAME", help="print text decoded by this tokenizer instead of token ids")
    add_json(show)
    _add_reader(shards, "index", "rebuild index and sample table from the tar files", _index)
    sample = _add_reader(shards, "sample", "write a random subset as a new shard set", _sample)
    sample.add_argument("--samples", type=int, required=True, metavar="N", help="number of samples")
    sample.add_argument("--seed", type=seed, default=0, metavar="N", help="random seed (default: %(default)s)")
    sample.add_argument("--out", type=Path, required=True, metavar="SHARDS", help="shard directory to write")
    add_overwrite(sample)
    merge = shards.add_parser(
        "merge",
        help="merge shard sets into one",
        description="Merge shard sets with the same graph and tokenizer into one.",
    )
    merge.add_argument("shards", type=Path, nargs="+", metavar="SHARDS", help="shard directories")
    merge.add_argument("--out", type=Path, required=True, metavar="SHARDS", help="shard directory to write")
    add_overwrite(merge)
    merge.set_defaults(run=_merge)
    _add_order(shards)


def _add_reader(
    shards: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    text: str,
    run: Callable[[argparse.Namespace], int | None],
) -> argparse.ArgumentParser:
    """Add a command that reads one shard set."""
    command = shards.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    command.add_argument("shards", type=Path, metavar="SHARDS", help="shard directory")
    command.set_defaults(run=run)
    return command


def _add_build(shards: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    build = shards.add_parser(
        "build",
        help="build shards from documents",
        description="Split documents into passages, link their mentions to concepts of a graph, and write tar "
        "shards with an index.",
    )
    build.add_argument("--graph", type=Path, required=True, metavar="GRAPH", help="graph directory")
    build.add_argument(
        "--corpus", nargs="+", action="extend", required=True, metavar="FORMAT:PATH",
        help="documents, in this order: files, folders or quoted patterns (medline:'baseline/*.xml.gz'); FORMAT is "
        "pubtator, medline, jats, bioc-xml, bioc-json, bern2 or jsonl",
    )  # fmt: skip
    build.add_argument(
        "--text", nargs="+", action="extend", default=[], metavar="FORMAT:PATH",
        help="texts of the --corpus files, one file for each or one for all, joined by document id",
    )  # fmt: skip
    build.add_argument(
        "--link", choices=("gold", "dictionary"), default="",
        help="use the annotated mentions, or find names of the graph (default: gold for files with mentions, otherwise "
        "dictionary)",
    )  # fmt: skip
    build.add_argument(
        "--tokenizer", required=True, metavar="NAME", help="model directory or name on the Hugging Face Hub"
    )
    build.add_argument("--out", type=Path, required=True, metavar="SHARDS", help="shard directory to write")
    add_overwrite(build)
    for option, default, text in (
        ("--max-tokens", 128, "maximum tokens of a passage, special tokens included"),
        ("--max-name-tokens", 32, "maximum tokens of a concept name"),
        ("--stored-fan-out", 32, "neighbors stored with each concept"),
        ("--shard-samples", 4096, "samples per tar file"),
    ):
        build.add_argument(option, type=int, default=default, metavar="N", help=f"{text} (default: %(default)s)")
    build.add_argument(
        "--validation", type=float, default=0.0, metavar="FRACTION",
        help="fraction of documents in the validation split (default: %(default)s)",
    )  # fmt: skip
    build.add_argument("--keep-unlinked", action="store_true", help="keep passages without linked mentions")
    build.add_argument(
        "--concept-cap", type=int, default=0, metavar="N",
        help="drop passages whose concepts all have N passages already; 0 keeps all (default: %(default)s)",
    )  # fmt: skip
    facts = build.add_argument_group("facts that are stored with a concept (default: all)")
    facts.add_argument(
        "--relation-weight", nargs="+", action="extend", default=[], metavar="NAME=WEIGHT",
        help="sampling weight of the facts of a relation (default: 1; 0 stores none)",
    )  # fmt: skip
    facts.add_argument(
        "--fact-source", nargs="+", action="extend", default=[], metavar="SAB", help="only facts of these vocabularies"
    )
    facts.add_argument(
        "--largest-degree", type=int, default=0, metavar="N",
        help="drop neighbors with more facts than this; 0 keeps all (default: %(default)s)",
    )  # fmt: skip
    where = build.add_mutually_exclusive_group()
    where.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes on this host (default: %(default)s)"
    )
    where.add_argument("--mpi", action="store_true", help="use the ranks of the MPI job that runs this command")
    add_json(build, "the report")
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
        _check_encoder(options.tokenizer)
        result = build_shards(
            corpora, options.graph, options.tokenizer, options.out, settings, pool, overwrite=options.overwrite
        )
    for failure in result.failures:
        print(f"bali-ds: skipped: {message(failure)}", file=sys.stderr)
    fingerprint = result.index["fingerprint"]
    emit(
        {**result.report, "fingerprint": fingerprint},
        options.json,
        lambda shown: f"{readable_report(shown)}\n{options.out}: {len(result.index['shards'])} shards, {fingerprint}",
    )
    return 1 if result.failures else 0


def _neighbors(options: argparse.Namespace) -> "NeighborSettings":
    from bali_ds.shards.neighbor_settings import NeighborSettings

    weights = {}
    for entry in options.relation_weight:
        name, _, weight = entry.rpartition("=")
        try:
            weights[name] = float(weight)
        except ValueError:
            raise InputError(f"--relation-weight {entry}: write NAME=WEIGHT, for example has_phenotype=0.1") from None
    return NeighborSettings(tuple(sorted(weights.items())), tuple(sorted(options.fact_source)), options.largest_degree)


def _check_encoder(name: str) -> None:
    """Compare the tokenizer of an encoder with that of transformers and with the embeddings, as training does later.

    A tokenizer by itself, without config.json, has nothing that it could be compared with. Without torch, which data
    preparation does not need, training compares them.
    """
    path = Path(name)
    if path.is_file() or (path.is_dir() and not (path / "config.json").is_file()):
        return
    try:
        from bali_ds.model.pretrained import shapes_of_encoder
        from bali_ds.model.tokenizer_checks import matching_tokenizer
    except ModuleNotFoundError as error:
        print_progress(f"{error.name} is not installed: training will compare the tokenizer with the encoder")
        return

    matching_tokenizer(name, shapes_of_encoder(name))


def _corpora(options: argparse.Namespace) -> "list[Corpus]":
    from bali_ds.corpus.corpus_files import corpus_files
    from bali_ds.shards.build_settings import Corpus

    found = [[corpus_files(entry) for entry in entries] for entries in (options.corpus, options.text)]
    files, texts = ([(name, path) for name, paths in each for path in paths] for each in found)
    if len(texts) not in (0, 1, len(files)):
        raise InputError(
            f"--text: got {len(texts)} files for {len(files)} files of --corpus; pass one for each, or one for all"
        )
    joined: list[tuple[str, Path] | None] = [*(texts * len(files) if len(texts) == 1 else texts)]
    pairs = zip(files, joined or [None] * len(files), strict=True)
    return [Corpus(name, path, options.link, text) for (name, path), text in pairs]


def _stats(options: argparse.Namespace) -> None:
    from bali_ds.shards.summary import statistics

    values = statistics(options.shards)
    emit(values, options.json, lambda shown: _table(str(options.shards), shown))


def _lint(options: argparse.Namespace) -> int:
    from bali_ds.corpus.tokenizer import Tokenizer
    from bali_ds.shards.lint import lint
    from bali_ds.shards.shard_set import ShardSet

    problems = lint(options.shards, options.graph)
    if options.tokenizer:
        try:
            ShardSet.open(options.shards).check_tokenizer(Tokenizer.load(options.tokenizer), options.tokenizer)
            _check_encoder(options.tokenizer)
        except InputError as error:
            problems.append(str(error))
    clean = f"{options.shards}: no problems found"
    emit({"findings": problems}, options.json, lambda shown: "\n".join(shown["findings"]) or clean)
    return 1 if problems else 0


def _show(options: argparse.Namespace) -> None:
    from bali_ds.shards.sample_display import SampleDisplay, marked, readable, write_page

    if (options.key is None) == (options.random is None):
        raise InputError("shards show: pass the KEY of a sample, or --random N")
    if options.random is not None and options.random < 1:
        raise InputError(f"--random {options.random}: must be at least 1")
    display = SampleDisplay(options.shards, options.graph, options.tokenizer)
    values = display.show_random(options.random, options.seed) if options.random else [display.show(options.key)]
    if options.html:
        write_page(values, str(options.shards), options.html)
    elif options.random:
        emit(values, options.json, lambda shown: "\n".join(map(marked, shown)))
    else:
        emit(values[0], options.json, readable)


def _index(options: argparse.Namespace) -> None:
    from bali_ds.shards.tar_scanner import reindex

    _print_shards(options.shards, reindex(options.shards))


def _sample(options: argparse.Namespace) -> None:
    from bali_ds.shards.subset import sample_shards

    index = sample_shards(options.shards, options.out, options.samples, options.seed, overwrite=options.overwrite)
    _print_shards(options.out, index)


def _merge(options: argparse.Namespace) -> None:
    from bali_ds.shards.subset import merge_shards

    _print_shards(options.out, merge_shards(options.shards, options.out, overwrite=options.overwrite))


def _print_shards(path: Path, index: dict[str, Any]) -> None:
    passages = sum(shard["samples"] for shard in index["shards"])
    print(f"{path}: {passages} passages in {len(index['shards'])} shards, fingerprint {index['fingerprint']}")


def _table(title: str, values: dict[str, object]) -> str:
    width = max(len(name) for name in values)
    lines = [f"  {name.replace('_', ' '):{width}}  {value}" for name, value in values.items() if value != []]
    return "\n".join([title, *lines])


def _add_order(shards: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    order = shards.add_parser(
        "order",
        help="print the sample keys that a rank reads in each step",
        description="Print the sample keys that a rank reads in each step, one JSON list per step.",
    )
    order.add_argument(
        "shards", nargs="+", metavar="SHARDS",
        help="shard directory; for a mixture several, each as SHARDS=PROPORTION",
    )  # fmt: skip
    order.add_argument(
        "--global-batch", type=int, required=True, metavar="N", help="samples of one step over all ranks"
    )
    order.add_argument("--steps", type=int, metavar="N", help="steps to print (default: to the end of the epoch)")
    for option, default, text in (
        ("--world-size", 1, "number of ranks of the run"),
        ("--rank", 0, "rank whose samples are printed"),
        ("--workers", 0, "loader workers of the run; the order does not depend on them"),
        ("--seed", 0, "seed of the run"),
        ("--epoch", 0, "epoch to start in"),
        ("--start", 0, "samples of this epoch that were read before"),
        ("--window", 1024, "samples that are shuffled together in a lane"),
    ):
        kind = seed if option == "--seed" else int
        order.add_argument(option, type=kind, default=default, metavar="N", help=f"{text} (default: %(default)s)")
    order.add_argument(
        "--temperature", type=float, default=1.0, metavar="T", help="data.temperature of the run (default: %(default)s)"
    )
    order.set_defaults(run=_order)


def _order(options: argparse.Namespace) -> None:
    from bali_ds.data.mixture import Mixture
    from bali_ds.data.sampler import Position, SampleOrder, Schedule, rank_offsets
    from bali_ds.data.settings import StreamSettings
    from bali_ds.shards.shard_set import ShardSet

    if options.steps is not None and options.steps < 0:
        raise InputError(f"--steps {options.steps}: must be at least 0")
    parts = [_path_and_proportion(text) for text in options.shards]
    mixture = Mixture([ShardSet.open(path) for path, _ in parts], [proportion for _, proportion in parts])
    settings = StreamSettings(seed=options.seed, window=options.window, temperature=options.temperature)
    order = SampleOrder(mixture, settings)
    offsets = rank_offsets(options.global_batch, 1, options.rank, options.world_size)
    schedule = Schedule(order.size, options.global_batch, Position(options.epoch, options.start))
    steps = (order.size - options.start) // options.global_batch if options.steps is None else options.steps
    for step in range(steps):
        begin = schedule.begin(step)
        rows = order.indices(begin.epoch * order.size + begin.samples_seen + offsets).sample_rows
        print(json.dumps([mixture.key(row) for row in rows.tolist()]))


def _path_and_proportion(text: str) -> tuple[str, int]:
    path, equals, proportion = text.rpartition("=")
    return (path, int(proportion)) if equals and proportion.isdigit() else (text, 1)
