"""Failed steps: a record of what a non-finite step consisted of, and its replay in one process."""

import math
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from bali_ds.checkpoint.manager import RunProgress
from bali_ds.checkpoint.marker import checkpoint_step, complete_checkpoints, parse_step_name, step_name
from bali_ds.checkpoint.zero_reader import read_checkpoint
from bali_ds.config import Recipe, load_recipe
from bali_ds.data.batch import Batch
from bali_ds.data.loader import Step
from bali_ds.data.sampler import Position
from bali_ds.distributed import Ranks
from bali_ds.errors import InputError
from bali_ds.files import read_json, write_json
from bali_ds.model.aligner import Aligner
from bali_ds.model.build_model import DTYPES, build_aligner
from bali_ds.parsing import validated
from bali_ds.planning.run_data import RunData
from bali_ds.training.step import train_step

_MOST_NAMED = 5


class _Start(BaseModel):
    epoch: int = Field(ge=0, lt=2**31)
    samples_seen: int = Field(ge=0, lt=2**48)


class _Rank(BaseModel):
    model_config = ConfigDict(extra="allow")
    rank: int
    host: str
    concepts: list[str]
    samples: list[str]


class _Record(BaseModel):
    """The record of a failed step, as `write_failed_step` writes it; ranks are in order."""

    start: _Start
    ranks: list[_Rank] = Field(min_length=1)


def failed_step_path(run: Path, step: int) -> Path:
    """Return where the record of a failed step is written; the first step of a run is 1."""
    return run / "failures" / f"{step_name(step)}.json"


def write_failed_step(
    run: Path,
    ranks: Ranks,
    data: RunData,
    *,
    step: int,
    start: Position,
    batch: Step,
    outputs: dict[str, torch.Tensor],
    parameters: list[str],
) -> str:
    """Write the record of a failed step and return one line about it; every rank calls this.

    Args:
        run: the run's directory.
        ranks: the ranks of the run.
        data: the data of the run.
        step: the number of the step.
        start: position in the data before it.
        batch: this rank's samples.
        outputs: what the model returned on this rank.
        parameters: names of the parameters whose gradient is non-finite on this rank.
    """
    concepts: set[int] = set()
    for vectors in (outputs[name] for name in ("text_views", "graph_views") if name in outputs):
        concepts.update(outputs["concept_ids"][~torch.isfinite(vectors).all(1)].tolist())
    rows = [int(row) for micro_batch in batch.micro_batches for row in micro_batch.sample_rows]
    own = {
        "rank": ranks.rank,
        "host": socket.gethostname(),
        "loss": {name: str(float(value)) for name, value in outputs.items() if value.numel() == 1},
        "concepts": [data.graph.cui(concept) for concept in sorted(concepts)],
        "parameters": parameters,
        "rows": rows,
        "samples": [data.shards.key(row) for row in rows],
    }
    path, message = failed_step_path(run, step), None
    if reports := ranks.gather_object(own):
        try:
            write_json(path, {"step": step, "start": asdict(start), "ranks": reports})
            written = f"written to {path}, look closer with: bali-ds replay {run} {step}"
        except InputError as error:
            written = str(error)
        message = f"{_summary(step, reports)}; {written}"
    return ranks.broadcast_object(message)


def _summary(step: int, reports: list[dict[str, Any]]) -> str:
    """Name the ranks where it began: those with non-finite views, else those with non-finite gradients, else all."""
    origin = (
        [rank for rank in reports if rank["concepts"]] or [rank for rank in reports if rank["parameters"]] or reports
    )
    first = origin[0]
    samples, loss = first["samples"], first["loss"]["loss"]
    more = f" and {len(samples) - _MOST_NAMED} more" if len(samples) > _MOST_NAMED else ""
    if math.isfinite(float(loss)):
        what = f"the gradient of {first['parameters'][0]} is non-finite"
    else:
        what = f"the loss is {loss}"
    where = ", ".join(f"rank {rank['rank']} on {rank['host']}" for rank in origin[:_MOST_NAMED])
    return f"step {step}: {what}, from {where}, samples {', '.join(samples[:_MOST_NAMED])}{more}"


def replay(run: Path, step: int, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Take a failed step again in one process, with the newest checkpoint before it and the samples of all ranks.

    Dropout is off, since it differed from rank to rank. Weights are not updated.

    Args:
        run: the run's directory.
        step: the number of the step, as in the message and in `failures/`.
        overrides: `key=value` changes of the run's recipe; a `pipe:` command as shards is run only if named here.

    Returns:
        {"step", "checkpoint": step of the weights, "loss": by part, "module": the first one with a non-finite output,
        "parameters": those with a non-finite gradient, "ranks": as recorded when the step failed}.

    Raises:
        InputError: there is no record of this step or no checkpoint before it, or the recipe names shards that a run
            directory may not name.
    """
    path = failed_step_path(run, step)
    if not path.is_file():
        recorded = sorted(filter(None, (parse_step_name(each.stem) for each in path.parent.glob("step-*.json"))))
        raise InputError(f"{path}: does not exist; failed steps: {', '.join(map(str, recorded)) or 'none'}")
    record = validated(_Record, read_json(path), str(path))
    recipe = load_recipe(run / "recipe.yaml", overrides)
    data = RunData.open(recipe)
    checkpoint, aligner = _load_aligner(recipe, data, run / "checkpoints", step)
    start = Position(record.start.epoch, record.start.samples_seen)
    batch = Step(start, tuple(_micro_batches(recipe, data, start, len(record.ranks))))
    modules: list[str] = []
    with _recorded_non_finite_outputs(aligner, modules):
        result = train_step(_PlainEngine(aligner), batch, RunProgress(step - 1, start))
    return {
        "step": step,
        "checkpoint": checkpoint,
        "loss": {name: float(value) for name, value in result.outputs.items() if value.numel() == 1},
        "module": next(iter(modules), None),
        "parameters": [
            name
            for name, parameter in aligner.named_parameters()
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all()
        ],
        "ranks": [rank.model_dump() for rank in record.ranks],
    }


class _PlainEngine:
    """Stands for DeepSpeed's engine in one process; its update does nothing."""

    def __init__(self, aligner: Aligner) -> None:
        self.device, self._aligner = aligner.device, aligner

    def __call__(self, micro_batches: list[Batch]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self._aligner(micro_batches)

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        pass


def _load_aligner(recipe: Recipe, data: RunData, checkpoints: Path, step: int) -> tuple[int, Aligner]:
    """Return the model with the weights of the newest checkpoint before a step, and that checkpoint's step."""
    before = next((path for path in complete_checkpoints(checkpoints) if checkpoint_step(path) < step), None)
    if before is None:
        raise InputError(f"{checkpoints}: holds no checkpoint from before step {step}")
    aligner = build_aligner(recipe, 2 * data.graph.num_relations, data.shards)
    weights = {name: tensor.tensor() for name, tensor in read_checkpoint(before).items()}
    try:
        aligner.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise InputError(f"{before}: is the checkpoint of another model: {' '.join(str(error).split())}") from error
    return checkpoint_step(before), aligner.to(DTYPES[recipe.precision]).eval()


def _micro_batches(recipe: Recipe, data: RunData, start: Position, ranks: int) -> Iterator[Batch]:
    """Yield the micro-batches of all ranks, as they were."""
    for rank in range(ranks):
        with data.loader(recipe, rank, ranks, start, workers=0) as loader:
            yield from next(loader).micro_batches


@contextmanager
def _recorded_non_finite_outputs(aligner: Aligner, names: list[str]) -> Iterator[None]:
    """Append the name of each module that returns a non-finite tensor, in the order of the calls."""

    def hook_of(name: str) -> Any:
        def hook(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple) else [output]
            if any(isinstance(each, torch.Tensor) and not torch.isfinite(each.detach()).all() for each in tensors):
                names.append(name)

        return hook

    hooks = [module.register_forward_hook(hook_of(name)) for name, module in aligner.named_modules() if name]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
