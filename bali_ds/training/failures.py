"""Writes down what a step that went wrong was made of, for people and for `bali-ds replay`."""

import math
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bali_ds.data.loader import Step
from bali_ds.data.sampler import Position
from bali_ds.distributed import Ranks
from bali_ds.files import write_json
from bali_ds.training.run_directory import RunData

_NAMED = 5


def failure_path(run: Path, step: int) -> Path:
    """Return where the failure of a step is written; the first step of a run is 1."""
    return run / "failures" / f"step-{step:08d}.json"


def write_failure(
    run: Path,
    ranks: Ranks,
    data: RunData,
    *,
    step: int,
    start: Position,
    batch: Step,
    parts: dict[str, torch.Tensor],
    parameters: list[str],
) -> str:
    """Write the failure of a step; return one line about it. Every rank calls this.

    Args:
        run: its directory.
        ranks: of the run.
        data: of the run.
        step: the number of the step that is not taken.
        start: where the data stood before it.
        batch: this rank's samples.
        parts: what the model returned on this rank.
        parameters: names of the parameters whose gradient on this rank is no number.
    """
    concepts: set[int] = set()
    for vectors in (parts[name] for name in ("text_views", "graph_views") if name in parts):
        concepts.update(parts["concept_ids"][~torch.isfinite(vectors).all(1)].tolist())
    rows = [int(row) for micro_batch in batch.micro_batches for row in micro_batch.sample_rows]
    own = {
        "rank": ranks.rank,
        "host": socket.gethostname(),
        "loss": {name: str(float(value)) for name, value in parts.items() if value.numel() == 1},
        "concepts": [data.graph.cui(concept) for concept in sorted(concepts)],
        "parameters": parameters,
        "rows": rows,
        "samples": [data.shards.key(row) for row in rows],
    }
    reports = ranks.all_gather_object(own)
    path = failure_path(run, step)
    if ranks.is_first:
        write_json(path, {"step": step, "start": asdict(start), "ranks": reports})
    return f"{_line(step, reports)}; written to {path}, look closer with: bali-ds replay {run} {step}"


def _line(step: int, reports: list[dict[str, Any]]) -> str:
    """Name the ranks where it began: those with vectors that are none, else with such gradients, else all."""
    guilty = (
        [rank for rank in reports if rank["concepts"]] or [rank for rank in reports if rank["parameters"]] or reports
    )
    first = guilty[0]
    samples = first["samples"]
    more = f" and {len(samples) - _NAMED} more" if len(samples) > _NAMED else ""
    loss = first["loss"]["loss"]
    what = (
        f"the loss is {loss}" if not math.isfinite(float(loss)) else f"the gradient of {first['parameters'][0]} is none"
    )
    where = ", ".join(f"rank {rank['rank']} on {rank['host']}" for rank in guilty[:_NAMED])
    return f"step {step}: {what}, from {where}, samples {', '.join(samples[:_NAMED])}{more}"
