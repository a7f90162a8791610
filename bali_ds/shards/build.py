"""Shard build: input files to parts, names, shards and index, resumable at any point."""

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bali_ds.corpus.name_index import FORMAT_VERSION as DICTIONARY_VERSION
from bali_ds.corpus.name_index import open_dictionary
from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.directories import Output, check_replaceable, published_directory
from bali_ds.errors import InputError, system_error
from bali_ds.files import resolved, sha256_file, write_json
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.shards.assembly import Assembly, ShardPlan, plan_shards
from bali_ds.shards.build_settings import BuildSettings, Corpus
from bali_ds.shards.layout import FORMAT_VERSION
from bali_ds.shards.part import PartTask, build_part
from bali_ds.shards.pools import BuildProgress, Pool, open_pool
from bali_ds.shards.shard_set import Shard
from bali_ds.shards.summary import build_report
from bali_ds.shards.writer import SHARDS, write_index, write_names, write_sample_table, write_shard
from bali_ds.working_directory import remove_directory

UNFINISHED = Output(
    "an unfinished build",
    "build.json",
    ("unfinished_build_of",),
    ("lock", "workers", "parts/*/*", "dictionary-*/*", "set-*/*"),
)
_WORKER_TIMEOUT = 60
"""Seconds to wait for the processes of a killed build."""


@dataclass
class BuildResult:
    """The index and the report of a build, and one message for each input file that was skipped."""

    index: dict[str, Any]
    report: dict[str, Any]
    failures: list[str] = field(default_factory=list)


def build_shards(
    corpora: Sequence[Corpus],
    graph_path: Path,
    tokenizer_source: str,
    out: Path,
    settings: BuildSettings,
    pool: Pool | None = None,
    *,
    overwrite: bool | None = None,
) -> BuildResult:
    """Build a shard set from input files; equal inputs and settings give equal bytes, whatever the pool.

    Intermediate results are in `.OUT.build` beside `out` until the shard set is published. A build that was interrupted
    at any point resumes from them when it is called again.

    Args:
        corpora: the input files, in the order of the samples.
        graph_path: the concept graph.
        tokenizer_source: a model directory, a tokenizer file or a name on the Hub.
        out: where the shard set is published; an existing shard set is replaced.
        settings: what determines the samples.
        pool: runs the tasks; this process by default.
        overwrite: replace any other directory as well; None if the caller has no such option.

    Raises:
        InputError: no input file could be read, or no mention in them is linked to the graph.
    """
    check_replaceable(out, SHARDS, overwrite=overwrite)  # before the work, which may take hours
    graph, tokenizer = KnowledgeGraph.open(graph_path), Tokenizer.load(tokenizer_source)
    settings.check()
    _check_files(corpora)
    settings.neighbors.sampler(graph)  # refuses unknown relations and sources before the work
    with _working_directory(out) as working, open_pool(1) as own:
        run = pool or own
        dictionary = working / f"dictionary-{DICTIONARY_VERSION}-{graph.fingerprint[:24]}"
        if any(corpus.uses_dictionary for corpus in corpora):
            open_dictionary(dictionary, graph)
        tasks = [PartTask(corpus, graph_path.resolve(), tokenizer_source, dictionary, settings) for corpus in corpora]
        parts, failures = _build_parts(run, tasks, working, graph, tokenizer)
        paths = [path for _, path in parts]
        assembly = plan_shards(paths, settings)
        if not assembly.shards:
            remove_directory(working)
            raise InputError(_no_samples(corpora[0], assembly.counts, graph_path))
        description = describe(graph, tokenizer, settings)
        directory = working / f"set-{_digest(paths, settings, description)}"
        directory.mkdir(exist_ok=True)
        shards = _write_shards(run, directory, assembly, description)
        if not (directory / "names.offsets.npy").is_file():
            write_names(directory, graph, tokenizer, settings.max_name_tokens)
        report = build_report(parts, assembly, graph, failures)
        write_json(directory / "report.json", report)
        write_sample_table(directory, description, [plan.sizes for plan in assembly.shards])
        index = write_index(directory, description, shards, assembly.counts)
        _publish(directory, out, overwrite)
        if not failures:
            remove_directory(working)
    return BuildResult(index, report, failures)


def describe(graph: KnowledgeGraph, tokenizer: Tokenizer, settings: BuildSettings) -> dict[str, Any]:
    """Return the description of the shard set that every tar and the index contain."""
    neighbors = settings.neighbors.describe()
    return {
        "format_version": FORMAT_VERSION,
        "graph_fingerprint": graph.fingerprint,
        "graph": {
            "concepts": graph.num_concepts,
            "names": graph.num_names,
            "edges": graph.num_edges,
            "relations": graph.num_relations,
        },
        "tokenizer": tokenizer.describe(),
        "max_tokens": settings.max_tokens,
        "max_name_tokens": settings.max_name_tokens,
        "stored_fan_out": settings.stored_fan_out,
        **({"neighbours": neighbors} if neighbors else {}),
    }


def _check_files(corpora: Sequence[Corpus]) -> None:
    for path in (path for corpus in corpora for path in corpus.files):
        if not path.is_file():
            raise InputError(f"{path}: is not a file; --corpus and --text take FORMAT:PATH")


def _no_samples(corpus: Corpus, counts: dict[str, int], graph: Path) -> str:
    """Return why no passage has a linked mention, and what to do."""
    if not counts["documents"]:
        return f"{corpus.path}: contains no documents; check that its format is {corpus.format}"
    if counts["mentions"]:
        return (
            f"{corpus.path}: none of {counts['mentions']} mentions is linked to a concept of {graph}; check that the "
            "identifiers are of a vocabulary of the graph"
        )
    if corpus.uses_dictionary:
        return f"{corpus.path}: none of {counts['documents']} documents contains a name of {graph}; check the language"
    return (
        f"{corpus.path}: none of {counts['documents']} documents has mentions; find names of the graph in them with "
        "--link dictionary"
    )


@contextmanager
def _working_directory(out: Path) -> Iterator[Path]:
    """Yield the directory of intermediate results beside `out`, locked by this process."""
    target = resolved(out)
    working = target.parent / f".{target.name}.build"
    check_replaceable(working, UNFINISHED)
    try:
        working.mkdir(parents=True, exist_ok=True)
        if not (working / UNFINISHED.marker).exists():
            write_json(working / UNFINISHED.marker, {"unfinished_build_of": target.name})
        (working / "parts").mkdir(exist_ok=True)
        lock = os.open(working / "lock", os.O_CREAT | os.O_RDWR)
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {system_error(error)}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _await_workers(working)
        yield working
    except BlockingIOError as error:
        raise InputError(f"{out}: another build of it is running; wait for it, or use another --out") from error
    finally:
        os.close(lock)


@contextmanager
def _working(working: Path) -> Iterator[None]:
    """Hold the lock that a later build waits for: a worker may outlive its builder for a moment."""
    lock = os.open(working / "workers", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield
    finally:
        os.close(lock)


def _await_workers(working: Path) -> None:
    """Wait for the processes of a killed build, which end by themselves."""
    lock = os.open(working / "workers", os.O_CREAT | os.O_RDWR)
    try:
        for _ in range(10 * _WORKER_TIMEOUT):
            try:
                return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.1)
        raise InputError(f"{working}: processes of an earlier build are still writing there; end them")
    finally:
        os.close(lock)


def _build_parts(
    run: Pool, tasks: Sequence[PartTask], working: Path, graph: KnowledgeGraph, tokenizer: Tokenizer
) -> tuple[list[tuple[Corpus, Path]], list[str]]:
    """Build the missing parts; return all parts that could be built, and a message for each of the others."""
    targets = [working / "parts" / task.key(graph.fingerprint, tokenizer.fingerprint) for task in tasks]
    progress = BuildProgress([task.corpus.path.stat().st_size for task in tasks])
    failures: dict[int, str] = {}
    for number, failure in run(_attempt, list(zip(tasks, targets, strict=True))):
        if failure:
            failures[number] = failure
        progress.done(number, targets[number])
    progress.close()
    pairs = zip(tasks, targets, strict=True)
    parts = [(task.corpus, target) for number, (task, target) in enumerate(pairs) if number not in failures]
    if not parts:
        remove_directory(working)
        raise InputError(failures[0])
    return parts, [failures[number] for number in sorted(failures)]


def _attempt(task: PartTask, target: Path) -> str | None:
    """Build a part unless it exists; return the message of an error, else None."""
    try:
        with _working(target.parent.parent):
            if not target.is_dir():
                build_part(task, target)
    except InputError as error:
        return str(error)
    return None


def _digest(parts: Sequence[Path], settings: BuildSettings, description: dict[str, Any]) -> str:
    content = [part.name for part in parts], settings, description
    return hashlib.sha256(repr(content).encode()).hexdigest()[:24]


def _write_shards(run: Pool, directory: Path, assembly: Assembly, description: dict[str, Any]) -> list[Shard]:
    written: dict[int, Shard] = {}
    arguments = [(directory, plan, description) for plan in assembly.shards]
    for number, shard in run(_write_planned, arguments):
        written[number] = shard
    return [written[number] for number in range(len(arguments))]


def _write_planned(directory: Path, plan: ShardPlan, description: dict[str, Any]) -> Shard:
    """Write a shard unless an earlier run has published it."""
    tar = directory / plan.name
    with _working(directory.parent):
        if tar.is_file():
            return Shard(plan.name, plan.split, len(plan.sizes), tar.stat().st_size, sha256_file(tar))
        return write_shard(directory, plan.name, plan.split, description, plan.read(), len(plan.sizes))


def _publish(directory: Path, out: Path, overwrite: bool | None) -> None:
    with published_directory(out, SHARDS, overwrite=overwrite) as target:
        for file in directory.iterdir():
            if not file.name.startswith("."):  # temporary file of a killed run
                os.rename(file, target / file.name)
