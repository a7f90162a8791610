"""Stability checks between backward pass and update: non-finite losses and gradients, and loss spikes."""

import json
import math
import statistics
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from pydantic import BaseModel, Field

from bali_ds.checkpoint.manager import CheckpointManager, RunProgress
from bali_ds.config import Recipe
from bali_ds.data.loader import Step
from bali_ds.data.sampler import Position
from bali_ds.distributed import Ranks
from bali_ds.errors import DIVERGED, RunEnded
from bali_ds.files import append_lines, read_json_lines
from bali_ds.model.aligner import Aligner
from bali_ds.parsing import validated
from bali_ds.planning.run_data import RunData
from bali_ds.terminal import print_progress
from bali_ds.training.process_group import EXITING
from bali_ds.training.replay import write_failed_step
from bali_ds.training.step import StepCallback, StepOutcome


class GradientNorms:
    """Norms of the gradients of one backward pass, taken before ranks average them and ZeRO partitions them."""

    def __init__(self, aligner: Aligner, *, scaled: bool) -> None:
        """Register hooks on the parameters of a model.

        Args:
            aligner: the model, in its engine or not.
            scaled: whether a loss scaler handles gradients that overflow, as in fp16.
        """
        self._scaled = scaled
        self._norms: dict[str, torch.Tensor] = {}
        self._loss = torch.zeros(())
        for name, parameter in aligner.named_parameters():
            if parameter.requires_grad:
                parameter.register_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[[torch.Tensor], None]:
        def record(gradient: torch.Tensor) -> None:
            self._norms[name] = torch.linalg.vector_norm(gradient.detach(), dtype=torch.float32)

        return record

    def nan_unless_finite(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the loss to compute gradients of; where it is non-finite, all gradients will be NaN.

        The cross-entropy of an impossible token, for example, is infinite with finite gradients.
        """
        self._norms = {}
        self._loss = loss.detach()
        return loss * torch.where(torch.isfinite(self._loss), 1.0, math.nan)

    def all_reduce_loss(self) -> tuple[float, bool]:
        """Return the loss, and whether loss and gradients are finite on every rank; a collective call.

        It waits for the backward pass, as the update does next for the norm that it clips by.
        """
        norms = torch.stack([torch.zeros_like(self._loss), *self._norms.values()])
        finite = torch.isfinite(self._loss) & (self._scaled | torch.isfinite(norms).all())
        values = torch.stack([torch.nan_to_num(self._loss, nan=math.inf), (~finite).float()])
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        loss, any_non_finite = values.tolist()
        return loss, not any_non_finite

    def non_finite_parameters(self) -> list[str]:
        """Return the names of the parameters whose gradient is non-finite on this rank."""
        return [name for name, norm in self._norms.items() if not math.isfinite(norm)]

    def by_part(self) -> dict[str, torch.Tensor]:
        """Return the norm of this rank's gradients of each part of the model, scalars; in fp16 they are scaled."""
        parts: dict[str, list[torch.Tensor]] = {}
        for name, norm in self._norms.items():
            parts.setdefault(name.partition(".")[0], []).append(norm)
        return {part: torch.linalg.vector_norm(torch.stack(norms)) for part, norms in parts.items()}


WINDOW = 100
_SHORTEST_HISTORY = 30
# The median absolute deviation of a normal distribution is this fraction of its standard deviation.
_MAD_OF_NORMAL = 0.6745


class SpikeDetector:
    """Compares each loss with the median of the losses before it, in units of their standard deviation."""

    def __init__(self, deviations: float) -> None:
        """Call a loss a spike when it is `deviations` above the median; 0 turns the detector off."""
        self._deviations = deviations
        self._losses: deque[float] = deque(maxlen=WINDOW)

    def is_spike(self, loss: float) -> bool:
        """Return whether this loss is a spike; non-spikes are added to the history."""
        if self._deviations and len(self._losses) >= _SHORTEST_HISTORY:
            median = statistics.median(self._losses)
            deviation = statistics.median(abs(each - median) for each in self._losses) / _MAD_OF_NORMAL
            # if the losses hardly differ, any change would be a spike
            if loss - median > self._deviations * max(deviation, 0.01 * abs(median)):
                return True
        self._losses.append(loss)
        return False


NON_FINITE = "non-finite"
SPIKE = "spike"


class _SkippedBatch(BaseModel):
    epoch: int = Field(ge=0, lt=2**63)
    samples_seen: int = Field(ge=0, lt=2**63)
    reason: str


class SkippedBatches:
    """The batches that a run skips, kept in its `left_out.jsonl`; a batch is named by the position after it."""

    def __init__(self, run: Path, ranks: Ranks) -> None:
        self._path, self._ranks = run / "left_out.jsonl", ranks
        self._reasons: dict[Position, str] = {}
        for entry in ranks.broadcast_object(list(self._read()) if ranks.is_first else []):
            self._reasons[Position(entry.epoch, entry.samples_seen)] = entry.reason

    def _read(self) -> Iterator[_SkippedBatch]:
        if self._path.exists():
            for number, value in read_json_lines(self._path):
                yield validated(_SkippedBatch, value, f"{self._path}:{number}", "remove the line")

    def __contains__(self, position_after: Position) -> bool:
        return position_after in self._reasons

    def count(self, reason: str) -> int:
        """Return how many batches are skipped for this reason."""
        return sum(each == reason for each in self._reasons.values())

    def add(self, position_after: Position, reason: str) -> None:
        """Skip this batch from now on; every rank calls this."""
        self._reasons[position_after] = reason
        if self._ranks.is_first:
            append_lines(self._path, [json.dumps({**asdict(position_after), "reason": reason})])


# After that many, spikes are not caused by a few samples.
_MOST_ROLLBACKS = 3


class Diverged(RunEnded):
    """Loss or gradients are non-finite, or the loss spiked too often; a checkpoint of the last good step is saved.

    Every rank raises it.
    """

    status = DIVERGED


class StabilityChecks(StepCallback):
    """Skips steps whose loss or gradients are non-finite, and rolls back steps whose loss is a spike."""

    def __init__(
        self,
        recipe: Recipe,
        ranks: Ranks,
        data: RunData,
        engine: deepspeed.DeepSpeedEngine,
        checkpoints: CheckpointManager,
    ) -> None:
        """Check the steps of a run.

        Args:
            recipe: the run.
            ranks: the ranks, which decide alike.
            data: the data of the run.
            engine: the engine, whose gradients are observed.
            checkpoints: where to save before the run ends, and whether a rollback is possible.
        """
        self._recipe, self._ranks, self._data = recipe, ranks, data
        self._engine, self._checkpoints = engine, checkpoints
        self.gradients = GradientNorms(engine.module, scaled=recipe.precision == "fp16")
        self._skipped = SkippedBatches(recipe.directory, ranks)
        self._spikes = SpikeDetector(recipe.fault_tolerance.spike)
        self._progress = RunProgress(0, Position())
        self._batch: Step | None = None
        self._position_before: Position | None = None

    def skips(self, batch: Step) -> bool:
        """Return whether the run has decided before to skip this batch."""
        return batch.position_after in self._skipped

    def before_forward(self, progress: RunProgress, batch: Step) -> None:
        """Remember which step it is."""
        self._position_before = self._batch.position_after if self._batch else None
        self._progress, self._batch = progress, batch

    def before_backward(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the loss, NaN where it is non-finite."""
        return self.gradients.nan_unless_finite(loss)

    def before_update(self, outputs: dict[str, torch.Tensor]) -> StepOutcome:
        """Return the outcome of the step, the same on every rank; a collective call.

        Raises:
            Diverged: the run cannot continue.
        """
        assert self._batch is not None
        loss, finite = self.gradients.all_reduce_loss()
        if not finite:
            self._skip(self._batch, outputs)
            return StepOutcome.SKIPPED
        if self._spikes.is_spike(loss) and self._checkpoints.any_complete():
            self._record_spike([self._position_before, self._batch.position_after], loss)
            return StepOutcome.ROLLED_BACK
        return StepOutcome.TAKEN

    def _skip(self, batch: Step, outputs: dict[str, torch.Tensor]) -> None:
        line = write_failed_step(
            self._recipe.directory,
            self._ranks,
            self._data,
            step=self._progress.step + 1,
            start=self._progress.position,
            batch=batch,
            outputs=outputs,
            parameters=self.gradients.non_finite_parameters(),
        )
        allowed = self._recipe.fault_tolerance.skip_non_finite
        if self._skipped.count(NON_FINITE) >= allowed:
            self._checkpoints.save(self._engine, self._progress)
            self._checkpoints.finish()
            EXITING.set()
            raise Diverged(line)
        self._skipped.add(batch.position_after, NON_FINITE)
        self._print(f"{line}; skipped, {self._skipped.count(NON_FINITE)} of at most {allowed}")

    def _record_spike(self, positions: list[Position | None], loss: float) -> None:
        # the batch before may have caused the high loss of this one
        for position in positions:
            if position is not None and position not in self._skipped:
                self._skipped.add(position, SPIKE)
        line = f"step {self._progress.step + 1}: the loss jumped to {loss:.4f}"
        if self._skipped.count(SPIKE) > 2 * _MOST_ROLLBACKS:
            EXITING.set()
            raise Diverged(f"{line}, again after {_MOST_ROLLBACKS} rollbacks; lower the learning rates")
        self._print(f"{line}; returning to the newest checkpoint, this batch and the one before it are skipped")

    def _print(self, line: str) -> None:
        if self._ranks.is_first:
            print_progress(line)
