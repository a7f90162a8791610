"""From input files to a published shard set: parts, names, shards, index."""

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
from bali_ds.errors import InputError
from bali_ds.files import resolved, sha256_file, write_json
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.shards.assembly import Assembly, ShardPlan, plan_shards
from bali_ds.shards.layout import FORMAT_VERSION
from bali_ds.shards.part import BuildSettings, Corpus, PartTask, make_part
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
_PATIENCE = 60
"""Seconds to wait for processes of a killed run."""


@dataclass
class BuildResult:
    """What a build made, its report, and the inputs that were set aside with the reason of each."""

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

    The work lies in `.OUT.build` beside `out` until it is published. A build that was cut short at any point goes on
    there when it is called again.

    Args:
        corpora: the input files, in the order of the samples.
        graph_path: the concept graph.
        tokenizer_source: a model directory, a tokenizer file or a name on the Hub.
        out: where the shard set is published; one that is there is replaced.
        settings: what decides the samples.
        pool: where the tasks run; in this process by default.
        overwrite: replace any other directory as well; None where the caller has no such option.

    Raises:
        InputError: no input could be read, or nothing in them is linked to the graph.
    """
    check_replaceable(out, SHARDS, overwrite=overwrite)  # before the work, which may take hours
    graph, tokenizer = KnowledgeGraph.open(graph_path), Tokenizer.load(tokenizer_source)
    _check(settings, corpora)
    settings.neighbors.sampler(graph)  # names of relations and sources that the graph lacks are refused here
    with _working_directory(out) as working, open_pool(1) as own:
        run = pool or own
        dictionary = working / f"dictionary-{DICTIONARY_VERSION}-{graph.fingerprint[:24]}"
        if any(corpus.uses_dictionary for corpus in corpora):
            open_dictionary(dictionary, graph)
        tasks = [PartTask(corpus, graph_path.resolve(), tokenizer_source, dictionary, settings) for corpus in corpora]
        made, failures = _make_parts(run, tasks, working, graph, tokenizer)
        parts = [part for _, part in made]
        assembly = plan_shards(parts, settings)
        if not assembly.shards:
            remove_directory(working)
            raise InputError(_why_nothing(corpora[0], assembly.counts, graph_path))
        description = describe(graph, tokenizer, settings)
        directory = working / f"set-{_digest(parts, settings, description)}"
        directory.mkdir(exist_ok=True)
        shards = _write_shards(run, directory, assembly, description)
        if not (directory / "names.offsets.npy").is_file():
            write_names(directory, graph, tokenizer, settings.max_name_tokens)
        report = build_report(made, assembly, graph, failures)
        write_json(directory / "report.json", report)
        write_sample_table(directory, description, [plan.rows for plan in assembly.shards])
        index = write_index(directory, description, shards, assembly.counts)
        _publish(directory, out, overwrite)
        if not failures:
            remove_directory(working)
    return BuildResult(index, report, failures)


def describe(graph: KnowledgeGraph, tokenizer: Tokenizer, settings: BuildSettings) -> dict[str, Any]:
    """Return what every tar and the index say about the shard set."""
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


def _check(settings: BuildSettings, corpora: Sequence[Corpus]) -> None:
    if settings.max_tokens < 8:
        raise InputError(f"--max-tokens {settings.max_tokens}: too few for a sentence; use at least 8")
    if settings.max_tokens > 65_536 or settings.stored_fan_out > 65_536:
        raise InputError("--max-tokens and --stored-fan-out: at most 65536")
    if settings.stored_fan_out < 1 or settings.max_name_tokens < 1 or settings.shard_samples < 1:
        raise InputError("--stored-fan-out, --max-name-tokens and --shard-samples: must be at least 1")
    if not 0 <= settings.validation < 1:
        raise InputError(f"--validation {settings.validation}: is a share of the documents, from 0 to below 1")
    if settings.concept_cap < 0:
        raise InputError(f"--concept-cap {settings.concept_cap}: is a number of passages; 0 keeps all")
    for corpus in corpora:
        for path in (corpus.path, *([corpus.text[1]] if corpus.text else [])):
            if not path.is_file():
                raise InputError(f"{path}: is no file; --corpus and --text take FORMAT:PATH")


def _why_nothing(corpus: Corpus, counts: dict[str, int], graph: Path) -> str:
    """Say why no passage has a linked mention, and what to do."""
    if not counts["documents"]:
        return f"{corpus.path}: holds no document; is it {corpus.format}?"
    if counts["mentions"]:
        return (
            f"{corpus.path}: none of {counts['mentions']} mentions is a concept of {graph}; do the identifiers belong "
            "to the same vocabulary?"
        )
    if corpus.uses_dictionary:
        return (
            f"{corpus.path}: none of {counts['documents']} documents has a name of {graph}; is it in another language?"
        )
    return (
        f"{corpus.path}: none of {counts['documents']} documents has mentions; find names of the graph in them with "
        "--link dictionary"
    )


@contextmanager
def _working_directory(out: Path) -> Iterator[Path]:
    """Yield the directory of unfinished work beside `out`, held by this process alone."""
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
        raise InputError(f"{out}: cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _await_workers(working)
        yield working
    except BlockingIOError as error:
        raise InputError(f"{out}: another build of it is running; wait for it, or name another --out") from error
    finally:
        os.close(lock)


@contextmanager
def _at_work(working: Path) -> Iterator[None]:
    """Let a later run wait until this process has done its task: it may outlive its builder for a moment."""
    lock = os.open(working / "workers", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield
    finally:
        os.close(lock)


def _await_workers(working: Path) -> None:
    """Wait for processes of a killed run, which end by themselves."""
    lock = os.open(working / "workers", os.O_CREAT | os.O_RDWR)
    try:
        for _ in range(10 * _PATIENCE):
            try:
                return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.1)
        raise InputError(f"{working}: processes of an earlier build still write there; end them")
    finally:
        os.close(lock)


def _make_parts(
    run: Pool, tasks: Sequence[PartTask], working: Path, graph: KnowledgeGraph, tokenizer: Tokenizer
) -> tuple[list[tuple[Corpus, Path]], list[str]]:
    """Make the parts that are not there yet; return those that could be made, and why the others could not."""
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
    """Make a part where there is none; return why it cannot be made."""
    try:
        with _at_work(target.parent.parent):
            if not target.is_dir():
                make_part(task, target)
    except InputError as error:
        return str(error)
    return None


def _digest(parts: Sequence[Path], settings: BuildSettings, description: dict[str, Any]) -> str:
    matter = [part.name for part in parts], settings, description
    return hashlib.sha256(repr(matter).encode()).hexdigest()[:24]


def _write_shards(run: Pool, directory: Path, assembly: Assembly, description: dict[str, Any]) -> list[Shard]:
    written: dict[int, Shard] = {}
    arguments = [(directory, plan, description) for plan in assembly.shards]
    for number, shard in run(_write_planned, arguments):
        written[number] = shard
    return [written[number] for number in range(len(arguments))]


def _write_planned(directory: Path, plan: ShardPlan, description: dict[str, Any]) -> Shard:
    """Write a shard, or take over the one that an earlier run has published."""
    tar = directory / plan.name
    with _at_work(directory.parent):
        if tar.is_file():
            return Shard(plan.name, plan.split, len(plan.rows), tar.stat().st_size, sha256_file(tar))
        return write_shard(directory, plan.name, plan.split, description, plan.read(), len(plan.rows))


def _publish(directory: Path, out: Path, overwrite: bool | None) -> None:
    with published_directory(out, SHARDS, overwrite=overwrite) as target:
        for file in directory.iterdir():
            if not file.name.startswith("."):  # left there by a run that was killed
                os.rename(file, target / file.name)
