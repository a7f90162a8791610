"""Decides, between the backward pass and the optimizer's step, whether the step may be taken."""

import enum
import json
import math
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist

from bali_ds.checkpoint.manager import CheckpointManager, RunProgress
from bali_ds.config import Recipe
from bali_ds.data.loader import Step
from bali_ds.data.sampler import Position
from bali_ds.distributed import Ranks
from bali_ds.errors import DIVERGED, RunEnded
from bali_ds.model.aligner import Aligner
from bali_ds.training.failures import write_failure
from bali_ds.training.rank_errors import LEAVING
from bali_ds.training.run_directory import RunData


class GradientWatch:
    """Norms of the gradients of one backward pass, before ranks average them and ZeRO takes them apart."""

    def __init__(self, aligner: Aligner, *, scaled: bool) -> None:
        """Watch the parameters of a model.

        Args:
            aligner: the model, in its engine or not.
            scaled: whether a loss scaler deals with gradients that overflow, as in fp16.
        """
        self._scaled = scaled
        self._norms: dict[str, torch.Tensor] = {}
        self._loss = torch.zeros(())
        for name, parameter in aligner.named_parameters():
            if parameter.requires_grad:
                parameter.register_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[[torch.Tensor], None]:
        def note(gradient: torch.Tensor) -> None:
            self._norms[name] = torch.linalg.vector_norm(gradient.detach(), dtype=torch.float32)

        return note

    def watched(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the loss to go backward from; where it is no number, no gradient will be one.

        The cross-entropy of an impossible token, for one, is infinite with gradients that look well.
        """
        self._norms = {}
        self._loss = loss.detach()
        return loss * torch.where(torch.isfinite(self._loss), 1.0, math.nan)

    def agreed(self) -> tuple[float, bool]:
        """Return the loss and whether loss and gradients are numbers, the same on every rank.

        It waits for the backward pass, as the optimizer's step does next for the norm that it clips by.
        """
        norms = torch.stack([torch.zeros_like(self._loss), *self._norms.values()])
        sound = torch.isfinite(self._loss) & (self._scaled | torch.isfinite(norms).all())
        facts = torch.stack([torch.nan_to_num(self._loss, nan=math.inf), (~sound).float()])
        dist.all_reduce(facts, op=dist.ReduceOp.MAX)
        loss, unsound = facts.tolist()
        return loss, not unsound

    def unsound(self) -> list[str]:
        """Return the names of the parameters whose gradient on this rank is no number."""
        return [name for name, norm in self._norms.items() if not math.isfinite(norm)]

    def norms(self) -> dict[str, torch.Tensor]:
        """Return the norm of this rank's gradients of each part of the model, scalars; fp16's are scaled."""
        parts: dict[str, list[torch.Tensor]] = {}
        for name, norm in self._norms.items():
            parts.setdefault(name.partition(".")[0], []).append(norm)
        return {part: torch.linalg.vector_norm(torch.stack(norms)) for part, norms in parts.items()}


WINDOW = 100
_FEWEST = 30
# The median absolute deviation of a normal distribution is this much of its standard deviation.
_NORMAL = 0.6745


class SpikeDetector:
    """Compares each loss with the median of those before it, in units of their deviation from it."""

    def __init__(self, deviations: float) -> None:
        """Call a loss a spike when it lies `deviations` above; 0 calls none so."""
        self._deviations = deviations
        self._losses: deque[float] = deque(maxlen=WINDOW)

    def jumped(self, loss: float) -> bool:
        """Return whether this loss is a spike; one that is none counts for those to come."""
        if self._deviations and len(self._losses) >= _FEWEST:
            median = statistics.median(self._losses)
            deviation = statistics.median(abs(each - median) for each in self._losses) / _NORMAL
            # losses that hardly differ would make a spike of nothing
            if loss - median > self._deviations * max(deviation, 0.01 * abs(median)):
                return True
        self._losses.append(loss)
        return False


NON_FINITE = "non-finite"
SPIKE = "spike"


class LeftOut:
    """`left_out.jsonl` of a run; a step's samples are named by the position after them."""

    def __init__(self, run: Path, ranks: Ranks) -> None:
        self._path, self._ranks = run / "left_out.jsonl", ranks
        lines = self._path.read_text(encoding="utf-8").splitlines() if ranks.is_first and self._path.exists() else []
        self._reasons: dict[Position, str] = {}
        for line in ranks.broadcast_object(lines):
            entry = json.loads(line)
            self._reasons[Position(entry["epoch"], entry["samples_seen"])] = entry["reason"]

    def __contains__(self, position_after: Position) -> bool:
        return position_after in self._reasons

    def count(self, reason: str) -> int:
        """Return how many steps' samples were left out for this reason."""
        return sum(each == reason for each in self._reasons.values())

    def add(self, position_after: Position, reason: str) -> None:
        """Leave these samples out from now on; every rank calls this."""
        self._reasons[position_after] = reason
        if self._ranks.is_first:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({**asdict(position_after), "reason": reason}) + "\n")


# A loss that jumps again and again is no accident of a few samples.
_RETURNS = 3


class Diverged(RunEnded):
    """The loss or a gradient is non-finite, or the loss jumped too often; a checkpoint of the last good step is saved.

    Every rank raises it.
    """

    status = DIVERGED


class Verdict(enum.Enum):
    """What becomes of a step."""

    SOUND = enum.auto()
    LEAVE_OUT = enum.auto()
    RETURN = enum.auto()


class Guard:
    """Refuses steps whose loss or gradient is no number, and those whose loss jumped."""

    def __init__(
        self,
        recipe: Recipe,
        ranks: Ranks,
        data: RunData,
        engine: deepspeed.DeepSpeedEngine,
        checkpoints: CheckpointManager,
    ) -> None:
        """Guard the steps of a run.

        Args:
            recipe: the run.
            ranks: the ranks, which decide alike.
            data: of the run.
            engine: whose gradients are watched.
            checkpoints: to save to, and to return to.
        """
        self._recipe, self._ranks, self._data = recipe, ranks, data
        self._engine, self._checkpoints = engine, checkpoints
        self.gradients = GradientWatch(engine.module, scaled=recipe.precision == "fp16")
        self._left_out = LeftOut(recipe.directory, ranks)
        self._spikes = SpikeDetector(recipe.fault_tolerance.spike)
        self._before: Position | None = None

    def leaves_out(self, batch: Step) -> bool:
        """Return whether the run has left these samples out before."""
        return batch.position_after in self._left_out

    def verdict(self, progress: RunProgress, batch: Step, parts: dict[str, torch.Tensor]) -> Verdict:
        """Judge the step after `progress`, whose backward pass is done; the same on every rank.

        Raises:
            Diverged: there is no going on.
        """
        loss, sound = self.gradients.agreed()
        before, self._before = self._before, batch.position_after
        if not sound:
            self._refuse(progress, batch, parts)
            return Verdict.LEAVE_OUT
        if self._spikes.jumped(loss) and self._checkpoints.any():
            self._note_spike(progress, [before, batch.position_after], loss)
            return Verdict.RETURN
        return Verdict.SOUND

    def drop_gradients(self) -> None:
        """Forget the gradients of a step that is left out; weights and moments stay as they are."""
        if self._engine.zero_optimization_stage() or self._recipe.precision != "fp32":
            # DeepSpeed's own optimizers skip a step whose gradients are no numbers
            self._engine.step()
        else:
            self._engine.optimizer.zero_grad(set_to_none=True)

    def _refuse(self, progress: RunProgress, batch: Step, parts: dict[str, torch.Tensor]) -> None:
        line = write_failure(
            self._recipe.directory,
            self._ranks,
            self._data,
            step=progress.step + 1,
            start=progress.position,
            batch=batch,
            parts=parts,
            parameters=self.gradients.unsound(),
        )
        allowed = self._recipe.fault_tolerance.skip_non_finite
        if self._left_out.count(NON_FINITE) >= allowed:
            self._checkpoints.save(self._engine, progress)
            self._checkpoints.finish()
            LEAVING.set()
            raise Diverged(line)
        self._left_out.add(batch.position_after, NON_FINITE)
        self._say(f"{line}; left out, {self._left_out.count(NON_FINITE)} of at most {allowed}")

    def _note_spike(self, progress: RunProgress, positions: list[Position | None], loss: float) -> None:
        # the samples before may be what made these look bad
        for position in positions:
            if position is not None and position not in self._left_out:
                self._left_out.add(position, SPIKE)
        line = f"step {progress.step + 1}: the loss jumped to {loss:.4f}"
        if self._left_out.count(SPIKE) > 2 * _RETURNS:
            LEAVING.set()
            raise Diverged(f"{line}, again after {_RETURNS} returns to a checkpoint; lower the learning rates")
        self._say(f"{line}; back to the newest checkpoint, these samples and those before them are left out")

    def _say(self, line: str) -> None:
        if self._ranks.is_first:
            print(line, flush=True)
