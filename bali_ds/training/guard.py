"""Decides, between the backward pass and the optimiser's step, whether the step may be taken."""

import enum

import deepspeed
import torch

from bali_ds.config import Recipe
from bali_ds.stream.loader import Step
from bali_ds.stream.order import Position
from bali_ds.training.checkpoint import Checkpoints, Progress
from bali_ds.training.cluster import Cluster
from bali_ds.training.failures import write_failure
from bali_ds.training.gradients import GradientWatch
from bali_ds.training.left_out import NON_FINITE, SPIKE, LeftOut
from bali_ds.training.outcome import DIVERGED, RunEnded
from bali_ds.training.rank_errors import LEAVING
from bali_ds.training.run import Data
from bali_ds.training.spikes import SpikeDetector

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
        self, recipe: Recipe, cluster: Cluster, data: Data, engine: deepspeed.DeepSpeedEngine, checkpoints: Checkpoints
    ) -> None:
        """Guard the steps of a run.

        Args:
            recipe: the run.
            cluster: the ranks, which decide alike.
            data: of the run.
            engine: whose gradients are watched.
            checkpoints: to save to, and to return to.
        """
        self._recipe, self._cluster, self._data = recipe, cluster, data
        self._engine, self._checkpoints = engine, checkpoints
        self.gradients = GradientWatch(engine.module, scaled=recipe.precision == "fp16")
        self._left_out = LeftOut(recipe.directory, cluster)
        self._spikes = SpikeDetector(recipe.guards.spike)
        self._before: Position | None = None

    def leaves_out(self, batch: Step) -> bool:
        """Return whether the run has left these samples out before."""
        return batch.position_after in self._left_out

    def verdict(self, progress: Progress, batch: Step, parts: dict[str, torch.Tensor]) -> Verdict:
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
            # DeepSpeed's own optimisers skip a step whose gradients are no numbers
            self._engine.step()
        else:
            self._engine.optimizer.zero_grad(set_to_none=True)

    def _refuse(self, progress: Progress, batch: Step, parts: dict[str, torch.Tensor]) -> None:
        line = write_failure(
            self._recipe.directory,
            self._cluster,
            self._data,
            step=progress.step + 1,
            start=progress.position,
            batch=batch,
            parts=parts,
            parameters=self.gradients.unsound(),
        )
        allowed = self._recipe.guards.skip_non_finite
        if self._left_out.count(NON_FINITE) >= allowed:
            self._checkpoints.save(self._engine, progress)
            self._checkpoints.finish()
            LEAVING.set()
            raise Diverged(line)
        self._left_out.add(batch.position_after, NON_FINITE)
        self._say(f"{line}; left out, {self._left_out.count(NON_FINITE)} of at most {allowed}")

    def _note_spike(self, progress: Progress, positions: list[Position | None], loss: float) -> None:
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
        if self._cluster.first:
            print(line, flush=True)
