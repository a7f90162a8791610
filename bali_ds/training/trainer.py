"""The training loop: fetch a batch, take a step, log, validate, save."""

import math
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import NoReturn

import deepspeed

from bali_ds.checkpoint.manager import CheckpointManager, NotSaved, RunProgress
from bali_ds.config import Recipe
from bali_ds.data.loader import Loader
from bali_ds.data.sampler import Position
from bali_ds.errors import InputError
from bali_ds.model.build_model import build_aligner
from bali_ds.planning.flops import StepFlops
from bali_ds.randomness import derive
from bali_ds.terminal import print_progress
from bali_ds.training.engine import accelerate, build_engine, deterministic_kernels, learning_rate_factor
from bali_ds.training.heartbeat import Watchdog
from bali_ds.training.metrics import MetricsLogger, PerformanceMetrics
from bali_ds.training.metrics_log import MetricsLog
from bali_ds.training.partition import partition_of
from bali_ds.training.preemption import PreemptionHandler
from bali_ds.training.process_group import raise_on_every_rank
from bali_ds.training.run_directory import announcement, discard_run, prepare
from bali_ds.training.run_lock import locked_run
from bali_ds.training.stability import StabilityChecks
from bali_ds.training.startup import RunInputs, started_run
from bali_ds.training.step import StepOutcome, train_step
from bali_ds.training.timers import CommunicationTimer, StragglerTimer
from bali_ds.training.trackers import open_trackers
from bali_ds.training.train_log import TrainLog
from bali_ds.training.validation import Validator, write_generated

# While waiting for disk space, ranks check that often for a reason to stop.
_POLL_SECONDS = 1.0


def train(recipe: Recipe, *, resume: bool = True, log: TrainLog | None = None) -> int:
    """Train the recipe's model from its newest complete checkpoint, or from the start, to its last step.

    Every rank that the launcher started calls this. When it returns, `recipe.directory` holds a complete
    checkpoint of the last step.

    Args:
        recipe: the run.
        resume: whether to resume from a checkpoint; otherwise an existing run is removed.
        log: opened in the run directory as soon as that exists, on rank 0.

    Returns:
        The step of that checkpoint.

    Raises:
        InputError: recipe, data and machine do not fit together, or differ between the ranks, or another job uses the
            run's directory.
        Diverged: loss or gradients are non-finite, or the loss spiked too often.
        NotSaved: the checkpoint of the last step could not be written.
        Stopped: a signal, the stop file or the death of the launcher came first; a checkpoint is saved.
        RankFailed: another rank failed, or a loader worker.
        LostRank: another rank is gone.
    """
    with started_run(recipe) as inputs, locked_run(recipe.directory, inputs.ranks):
        trainer = Trainer(recipe, inputs, resume=resume, log=log)
        with deterministic_kernels(wanted=recipe.deterministic), trainer.monitored():
            step = trainer.train()
            if recipe.objective.dual.weight:
                write_generated(trainer.engine, recipe, inputs.data, inputs.ranks)
        return step


class Trainer:
    """The components of a run, and the loop over its steps."""

    def __init__(self, recipe: Recipe, inputs: RunInputs, *, resume: bool, log: TrainLog | None = None) -> None:
        """Build model, engine and components, and load the newest checkpoint; every rank calls this."""
        self.recipe = recipe
        self.ranks, self.data, self.batch_plan, settings = inputs
        arguments = recipe, 2 * self.data.graph.num_relations, self.data.shards
        with raise_on_every_rank(self.ranks):
            if self.ranks.is_first:
                if not resume:
                    discard_run(recipe.directory)
                prepare(recipe)
                if log:
                    log.open_in(recipe.directory)
                print_progress("building the model")
            partition = partition_of(recipe, settings)
            aligner = None if partition else build_aligner(*arguments)
        # outside of the block, since partitioned weights are sent from rank to rank
        if aligner is None:
            aligner = build_aligner(*arguments, partition=partition)
        flops = StepFlops.of(aligner)
        accelerate(aligner.text, recipe, settings, self.ranks.device)
        self.engine: deepspeed.DeepSpeedEngine = build_engine(aligner, recipe, settings)
        self.checkpoints = self._checkpoint_manager()
        self.progress = self.checkpoints.restore(self.engine) or RunProgress(0, Position())
        if self.ranks.is_first:
            print_progress(announcement(recipe, self.data, self.engine.module, self.batch_plan, self.progress))

        self.stability = StabilityChecks(recipe, self.ranks, self.data, self.engine, self.checkpoints)
        self.stragglers = StragglerTimer(self.engine.module, self.ranks)
        self.communication = CommunicationTimer(self.ranks.device)
        self.performance = PerformanceMetrics(
            self.engine, self.ranks, self.stability.gradients, flops, self.communication
        )
        self.validator = Validator(self.engine, recipe, self.data, self.ranks, self.batch_plan.steps)
        self.preemption = PreemptionHandler(self.ranks, recipe.directory / "stop", recipe.fault_tolerance)
        stacks = recipe.directory / f"stacks/rank-{self.ranks.rank}.txt"
        self.watchdog = Watchdog(stacks, 60 * recipe.fault_tolerance.step_minutes)

    def _checkpoint_manager(self) -> CheckpointManager:
        identity = {
            "data": self.data.shards.fingerprint,
            "world size": self.ranks.world_size,
            "ZeRO stage": self.engine.zero_optimization_stage(),
        }
        directory = self.recipe.directory / "checkpoints"
        return CheckpointManager(directory, self.ranks, self.recipe.checkpoints, identity=identity)

    @contextmanager
    def monitored(self) -> Iterator[None]:
        """Time collectives, handle signals and watch for slow steps inside the block."""
        with self.communication.running(), self.preemption.handling_signals(), self.watchdog.running():
            yield

    def train(self) -> int:
        """Take all steps that are left, save the last one and return its number."""
        with self._metrics_log() as log:
            while self.progress.step < self.batch_plan.steps:
                if not self._train_until_rollback(log):
                    self._roll_back(log)
            self._save_last()
        return self.progress.step

    @contextmanager
    def _metrics_log(self) -> Iterator[MetricsLog | None]:
        """Open the log and the trackers on rank 0 if there are steps left, and close them after the block."""
        step = self.progress.step
        if not self.ranks.is_first or step >= self.batch_plan.steps:
            yield None
            return
        log = MetricsLog(self.recipe.directory, step, open_trackers(self.recipe, step))
        complete = False
        try:
            yield log
            complete = True
        finally:
            log.close(complete=complete)

    def _train_until_rollback(self, log: MetricsLog | None) -> bool:
        """Take steps to the last one; return whether it was reached, or a loss spike made the weights unusable."""
        metrics = self._metrics_logger(log)
        with closing(self._loader()) as loader:
            while self.progress.step < self.batch_plan.steps:
                self.watchdog.start_step(self.progress.step + 1)
                with metrics.data_wait():
                    batch = self.preemption.next_batch(loader)
                if (reason := self.preemption.all_reduce_reason()) or batch is None:
                    self._save_and_stop(str(reason))
                self.checkpoints.publish_if_flushed()
                if self.stability.skips(batch):
                    self.progress = RunProgress(self.progress.step, batch.position_after)
                    continue

                factor = learning_rate_factor(
                    self.progress.step, steps=self.batch_plan.steps, warmup_steps=self.batch_plan.warmup_steps
                )
                result = train_step(
                    self.engine,
                    batch,
                    self.progress,
                    learning_rate_factor=factor,
                    dropout_seed=self._dropout_seed(),
                    callbacks=(self.stragglers, self.stability),
                )
                if result.outcome is StepOutcome.ROLLED_BACK:
                    return False
                self.progress = result.progress
                if result.outcome is StepOutcome.SKIPPED:
                    continue

                step = self.progress.step
                metrics.record(result, batch, factor)
                if self.validator.due(step):
                    metrics.write(step, self.validator.validate(self.preemption))
                if step < self.batch_plan.steps and self.checkpoints.due(step):
                    self.checkpoints.save(self.engine, self.progress)
        return True

    def _loader(self) -> Loader:
        return self.data.loader(
            self.recipe,
            self.ranks.rank,
            self.ranks.world_size,
            self.progress.position,
            pin_memory=self.ranks.device.type == "cuda",
            quarantine=self.recipe.directory / f"quarantine-{self.ranks.rank}.jsonl",
        )

    def _metrics_logger(self, log: MetricsLog | None) -> MetricsLogger:
        parts = self.batch_plan, self.performance, self.stragglers, log
        return MetricsLogger(self.recipe, self.ranks, *parts, first_step=self.progress.step)

    def _dropout_seed(self) -> int:
        """Return a function of step and rank, so that a resumed run repeats its dropout without any saved state."""
        return int(derive(self.recipe.seed, "dropout", self.progress.step, self.ranks.rank)[0] >> 1)

    def _roll_back(self, log: MetricsLog | None) -> None:
        """Load the newest checkpoint into the engine; its samples follow again, without the skipped batches."""
        progress = self.checkpoints.restore(self.engine)
        if progress is None:
            raise InputError(
                f"{self.checkpoints.directory}: the checkpoint to return to after the loss spike is gone; start the "
                "run again"
            )
        self.progress = progress
        if log:
            log.rewind(progress.step)

    def _save_and_stop(self, reason: str) -> NoReturn:
        self.checkpoints.save(self.engine, self.progress)
        self.preemption.stop(reason, step=self.progress.step, saved=self.checkpoints.finish())

    def _save_last(self) -> None:
        """Save the last step; if that fails, try again for `checkpoints.retry_minutes`, without repeating a step.

        Raises:
            NotSaved: the checkpoint could not be written in that time.
            Stopped: a reason to stop came up meanwhile.
        """
        step, minutes = self.progress.step, self.recipe.checkpoints.retry_minutes
        until = time.monotonic() + 60 * minutes
        self.watchdog.start_step(step)
        self.checkpoints.save(self.engine, self.progress)
        if not self.checkpoints.finish() and minutes:
            self.checkpoints.warn(
                f"step {step} is the last: waiting up to {minutes:g} min for its checkpoint to be written; "
                f"free disk space, or end the run with: touch {self.recipe.directory / 'stop'}"
            )
        while not self.checkpoints.finish():
            if self.ranks.all_reduce_max(int(time.monotonic() >= until)):
                raise NotSaved(
                    f"{self.checkpoints.directory}: the checkpoint of the last step, {step}, was not saved: "
                    f"{self.checkpoints.fault}; nothing was exported; free disk space, then run the same command "
                    "again, which resumes from the newest checkpoint"
                )
            self._wait(min(30.0, 6 * minutes))
            self.watchdog.start_step(step)
            self.checkpoints.save(self.engine, self.progress)

    def _wait(self, seconds: float) -> None:
        """Wait, or stop when a reason comes up; every rank calls this."""
        for _ in range(math.ceil(seconds / _POLL_SECONDS)):
            if reason := self.preemption.all_reduce_reason():
                self.preemption.stop(reason, step=self.progress.step, saved=False)
            time.sleep(min(seconds, _POLL_SECONDS))
