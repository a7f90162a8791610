"""From input files to a published shard set: parts, names, shards, index."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bali_ds.corpus.document import ReadReport
from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.errors import InputError
from bali_ds.files import published_directory, read_json, write_json
from bali_ds.graph.store import KnowledgeGraph
from bali_ds.shards.assemble import plan_shards
from bali_ds.shards.layout import FORMAT_VERSION
from bali_ds.shards.names import write_names
from bali_ds.shards.part import BuildSettings, PartTask, make_part
from bali_ds.shards.writer import write_index, write_sample_table, write_shard


@dataclass
class BuildResult:
    """What a build made, and the inputs that were set aside with the reason of each."""

    index: dict[str, Any]
    failures: list[str] = field(default_factory=list)


def build_shards(
    corpora: Sequence[tuple[str, Path]], graph_path: Path, tokenizer_source: str, out: Path, settings: BuildSettings
) -> BuildResult:
    """Build a shard set from input files; equal inputs and settings give equal bytes.

    Parts made by an earlier run of the same command that was cut short are taken over.

    Args:
        corpora: format and path of each input file, in the order of the samples.
        graph_path: the concept graph.
        tokenizer_source: a model directory, a tokenizer file or a name on the Hub.
        out: where the shard set is published.
        settings: what decides the samples.

    Raises:
        InputError: no input could be read, or nothing in them is linked to the graph.
    """
    graph = KnowledgeGraph.open(graph_path)
    tokenizer = Tokenizer.load(tokenizer_source)
    _check(settings, corpora)
    working = out.parent / f".{out.name}.build"
    tasks = [PartTask(name, str(path), str(graph_path), tokenizer_source, settings) for name, path in corpora]
    parts, failures = _make_parts(tasks, working, graph, tokenizer)
    assembly = plan_shards(parts, settings)
    if not assembly.shards:
        shutil.rmtree(working)
        raise InputError(
            f"{corpora[0][1]}: none of {assembly.counts['mentions']} mentions is a concept of {graph_path}; "
            "do the identifiers belong to the same vocabulary?"
        )
    description = describe(graph, tokenizer, settings)
    with published_directory(out) as directory:
        write_names(directory, graph, tokenizer, settings.max_name_tokens)
        shards = [
            write_shard(directory, plan.name, plan.split, description, plan.read(), len(plan.rows))
            for plan in assembly.shards
        ]
        write_sample_table(directory, description, [plan.rows for plan in assembly.shards])
        write_json(directory / "report.json", _report(parts, assembly.counts, failures))
        index = write_index(directory, description, shards, assembly.counts)
    if not failures:
        shutil.rmtree(working)
    return BuildResult(index, failures)


def describe(graph: KnowledgeGraph, tokenizer: Tokenizer, settings: BuildSettings) -> dict[str, Any]:
    """Return what every tar and the index say about the shard set."""
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
    }


def _check(settings: BuildSettings, corpora: Sequence[tuple[str, Path]]) -> None:
    if settings.max_tokens < 8:
        raise InputError(f"--max-tokens {settings.max_tokens}: too few for a sentence; use at least 8")
    if settings.max_tokens > 65_536 or settings.stored_fan_out > 65_536:
        raise InputError("--max-tokens and --stored-fan-out: at most 65536")
    if settings.stored_fan_out < 1 or settings.max_name_tokens < 1 or settings.shard_samples < 1:
        raise InputError("--stored-fan-out, --max-name-tokens and --shard-samples: must be at least 1")
    if not 0 <= settings.validation < 1:
        raise InputError(f"--validation {settings.validation}: is a share of the documents, from 0 to below 1")
    for _, path in corpora:
        if not path.is_file():
            raise InputError(f"{path}: is no file; --corpus takes FORMAT:PATH")


def _make_parts(
    tasks: Sequence[PartTask], working: Path, graph: KnowledgeGraph, tokenizer: Tokenizer
) -> tuple[list[Path], list[str]]:
    parts, failures = [], []
    for task in tasks:
        target = working / "parts" / task.key(graph.fingerprint, tokenizer.fingerprint)
        try:
            if not target.is_dir():
                make_part(task, target)
            parts.append(target)
        except InputError as error:
            failures.append(str(error))
    if not parts:
        shutil.rmtree(working, ignore_errors=True)
        raise InputError(failures[0])
    return parts, failures


def _report(parts: Sequence[Path], counts: dict[str, int], failures: Sequence[str]) -> dict[str, Any]:
    read = ReadReport()
    for part in parts:
        own = read_json(part / "report.json")
        read.merge(ReadReport(read.counts.__class__(own["counts"]), own["remarks"]))
    return {"counts": counts, "read": dict(read.counts), "remarks": read.remarks, "failures": list(failures)}
