"""The training loop."""

import math
import time
from contextlib import closing
from dataclasses import dataclass

import deepspeed
import torch

from bali_ds.checkpoint.manager import CheckpointManager, NotSaved, RunProgress
from bali_ds.config import Recipe
from bali_ds.data.evaluation_batches import evaluation_batches
from bali_ds.data.loader import Loader, Step
from bali_ds.data.sampler import Position
from bali_ds.data.settings import StreamSettings
from bali_ds.distributed import Ranks
from bali_ds.errors import InputError
from bali_ds.model.build_model import build_aligner
from bali_ds.planning.batch_plan import BatchPlan
from bali_ds.planning.flops import StepFlops
from bali_ds.randomness import derive
from bali_ds.training.engine import build_engine, learning_rate_factor, set_learning_rates
from bali_ds.training.heartbeat import Watchdog
from bali_ds.training.metrics import Meter, Telemetry
from bali_ds.training.preemption import StopRequest
from bali_ds.training.rank_errors import raise_on_every_rank
from bali_ds.training.run_directory import RunData, announcement, discard_run, prepare
from bali_ds.training.run_lock import locked_run
from bali_ds.training.stability import Guard, Verdict
from bali_ds.training.startup import started
from bali_ds.training.timers import Communication, Stragglers
from bali_ds.training.validation import validate, write_generated

# Ranks that wait look for a reason to stop this often.
_POLL_SECONDS = 1.0


def train(recipe: Recipe, *, resume: bool = True) -> int:
    """Train the recipe's model from its newest complete checkpoint, or from the start, to its last step.

    Every rank that the launcher started calls this. When it returns, `recipe.directory` holds a complete
    checkpoint of the last step.

    Args:
        recipe: the run.
        resume: whether to go on from a checkpoint; otherwise an existing run is removed.

    Returns:
        The step of that checkpoint.

    Raises:
        InputError: recipe, data and machine do not fit together, or differ between the ranks, or another job uses the
            run's directory.
        Diverged: loss or gradient is no number, or the loss jumped too often.
        NotSaved: the checkpoint of the last step could not be written.
        Stopped: a signal, the stop file or the launcher's end came first; a checkpoint is saved.
        RankFailed: another rank failed, or a loader worker.
        LostRank: another rank is gone.
    """
    with started(recipe) as (ranks, data, batch_plan, settings), locked_run(recipe.directory, ranks):
        with raise_on_every_rank(ranks):
            if ranks.is_first:
                if not resume:
                    discard_run(recipe.directory)
                prepare(recipe)
            aligner = build_aligner(recipe, 2 * data.graph.num_relations, data.shards)
        flops = StepFlops.of(aligner)
        engine = build_engine(aligner, recipe, settings)
        checkpoints = CheckpointManager(
            recipe.directory / "checkpoints",
            ranks,
            recipe.checkpoints,
            identity={
                "data": data.shards.fingerprint,
                "world size": ranks.world_size,
                "ZeRO stage": engine.zero_optimization_stage(),
            },
        )
        progress = checkpoints.restore(engine) or RunProgress(0, Position())
        if ranks.is_first:
            print(announcement(recipe, data, engine.module, batch_plan, progress), flush=True)
        guard = Guard(recipe, ranks, data, engine, checkpoints)
        communication = Communication(ranks.device)
        meter = Meter(engine, ranks, guard.gradients, flops, communication)
        stragglers = Stragglers(engine.module, ranks)
        stop = StopRequest(ranks, recipe.directory / "stop", recipe.fault_tolerance)
        watchdog = Watchdog(
            recipe.directory / f"stacks/rank-{ranks.rank}.txt", 60 * recipe.fault_tolerance.step_minutes
        )
        training = _Training(
            recipe, batch_plan, ranks, data, engine, checkpoints, guard, meter, stragglers, stop, watchdog
        )
        with communication.watching(), stop.listening(), watchdog.watching():
            step = training.run(progress)
            if recipe.objective.dual.weight:
                write_generated(engine, recipe, data, ranks)
        return step


@dataclass
class _Training:
    """What the loop works with."""

    recipe: Recipe
    batch_plan: BatchPlan
    ranks: Ranks
    data: RunData
    engine: deepspeed.DeepSpeedEngine
    checkpoints: CheckpointManager

    guard: Guard
    meter: Meter
    stragglers: Stragglers
    stop: StopRequest
    watchdog: Watchdog

    def run(self, progress: RunProgress) -> int:
        """Take all steps from `progress` on, save the last and return its number."""
        while progress.step < self.batch_plan.steps:
            progress = self._steps(progress) or self._rewound()
        self._save_last(progress)
        return progress.step

    def _rewound(self) -> RunProgress:
        """Load the newest checkpoint into the engine, whose weights cannot be trained any further."""
        progress = self.checkpoints.restore(self.engine)
        if progress is None:
            raise InputError(
                f"{self.checkpoints.directory}: the checkpoint to return to after the loss spike is gone; start the "
                "run again"
            )
        return progress

    def _save_last(self, progress: RunProgress) -> None:
        """Save the last step; where that fails, try again for `checkpoints.retry_minutes`. No step is taken again.

        Raises:
            NotSaved: the checkpoint could still not be written.
            Stopped: a reason to stop came up meanwhile.
        """
        minutes = self.recipe.checkpoints.retry_minutes
        until = time.monotonic() + 60 * minutes
        self.watchdog.begins(progress.step)
        self.checkpoints.save(self.engine, progress)
        if not self.checkpoints.finish() and minutes:
            self.checkpoints.warn(
                f"step {progress.step} is the last: waiting up to {minutes:g} min for its checkpoint to be written; "
                f"free disk space, or end the run with: touch {self.recipe.directory / 'stop'}"
            )
        while not self.checkpoints.finish():
            if self.ranks.all_reduce_max(int(time.monotonic() >= until)):
                raise NotSaved(
                    f"{self.checkpoints.directory}: the checkpoint of the last step, {progress.step}, was not saved: "
                    f"{self.checkpoints.fault}; nothing was exported; free disk space, then run the same command "
                    "again, which resumes from the newest checkpoint"
                )
            self._pause(min(30.0, 6 * minutes), progress)
            self.watchdog.begins(progress.step)
            self.checkpoints.save(self.engine, progress)

    def _pause(self, seconds: float, progress: RunProgress) -> None:
        """Wait, and leave where a reason to stop comes up; every rank calls this."""
        for _ in range(math.ceil(seconds / _POLL_SECONDS)):
            if reason := self.stop.agreed():
                self.stop.leave(reason, step=progress.step, saved=False)
            time.sleep(min(seconds, _POLL_SECONDS))

    def _steps(self, progress: RunProgress) -> RunProgress | None:
        """Take all steps from `progress` to the last; None where the loss jumps and only a checkpoint is good."""
        recipe, ranks, stop = self.recipe, self.ranks, self.stop
        held_out = self._held_out()
        loader = self._loader(progress.position)
        telemetry = self._telemetry(progress)
        with closing(loader), closing(telemetry):
            while progress.step < self.batch_plan.steps:
                self.watchdog.begins(progress.step + 1)
                asked = time.monotonic()
                batch = stop.next_of(loader)
                waited = time.monotonic() - asked
                if (reason := stop.agreed()) or batch is None:
                    self.checkpoints.save(self.engine, progress)
                    stop.leave(str(reason), step=progress.step, saved=self.checkpoints.finish())
                self.checkpoints.advance()
                if self.guard.leaves_out(batch):
                    progress = RunProgress(progress.step, batch.position_after)
                    continue

                verdict, facts = self._step(progress, batch)
                if verdict is Verdict.RETURN:
                    return None
                progress = RunProgress(progress.step + (verdict is Verdict.SOUND), batch.position_after)
                if verdict is Verdict.LEAVE_OUT:
                    continue

                telemetry.record(progress, *facts, batch=batch, waited=waited)
                if progress.step % recipe.log_every == 0 and (slow := self.stragglers.report()) and ranks.is_first:
                    print(slow, flush=True)
                if held_out and self._due(progress, recipe.validation.every):
                    telemetry.write(progress.step, validate(self.engine, held_out, ranks, stop))
                if progress.step < self.batch_plan.steps and self.checkpoints.due(progress.step):
                    self.checkpoints.save(self.engine, progress)
        return progress

    def _step(self, progress: RunProgress, batch: Step) -> tuple[Verdict, tuple[dict[str, torch.Tensor], float]]:
        """Take one optimizer step if it is sound; return the model's facts and the text encoder's rate too."""
        step = progress.step
        factor = learning_rate_factor(step, steps=self.batch_plan.steps, warmup_steps=self.batch_plan.warmup_steps)
        set_learning_rates(self.engine, factor)
        # Dropout is a function of step and rank, so a resumed run repeats it without any saved state.
        torch.manual_seed(int(derive(self.recipe.seed, "dropout", step, self.ranks.rank)[0] >> 1))
        self.stragglers.begins(batch.micro_batches)
        loss, parts = self.engine([micro_batch.to(self.ranks.device) for micro_batch in batch.micro_batches])
        self.engine.backward(self.guard.gradients.watched(loss))
        verdict = self.guard.verdict(progress, batch, parts)
        if verdict is Verdict.LEAVE_OUT:
            self.guard.drop_gradients()
        else:
            self.engine.step()
        return verdict, (parts, self.recipe.optimizer.text_learning_rate * factor)

    def _due(self, progress: RunProgress, every: int) -> bool:
        return progress.step == self.batch_plan.steps or bool(every and progress.step % every == 0)

    def _loader(self, start: Position) -> Loader:
        recipe, ranks = self.recipe, self.ranks
        return Loader(
            self.data.shards,
            self.data.graph,
            StreamSettings.of(recipe),
            global_batch=recipe.batch.passages,
            micro_batches=recipe.batch.micro_batches,
            rank=ranks.rank,
            world_size=ranks.world_size,
            workers=recipe.data.workers,
            start=start,
            pin_memory=ranks.device.type == "cuda",
            quarantine=recipe.directory / f"quarantine-{ranks.rank}.jsonl",
        )

    def _telemetry(self, progress: RunProgress) -> Telemetry:
        return Telemetry(
            self.recipe.directory,
            self.ranks,
            self.meter,
            steps=self.batch_plan.steps,
            first_step=progress.step,
            every=self.recipe.log_every,
            passages=self.recipe.batch.passages,
            epoch_samples=self.batch_plan.training_passages,
        )

    def _held_out(self) -> list:
        if not len(self.data.shards.split("validation")):
            return []
        batches = evaluation_batches(
            self.data.shards,
            self.data.graph,
            StreamSettings.of(self.recipe),
            batch_size=32,
            limit=self.recipe.validation.passages,
        )
        return list(batches)
