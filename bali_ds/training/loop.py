"""The training loop."""

import shutil
import time
from contextlib import closing
from dataclasses import dataclass

import deepspeed
import torch

from bali_ds.config import Recipe
from bali_ds.model.build import build_aligner
from bali_ds.preflight.arithmetic import Arithmetic
from bali_ds.preflight.flops import StepFlops
from bali_ds.randomness import derive
from bali_ds.stream.evaluation import evaluation_batches
from bali_ds.stream.loader import Loader, Step
from bali_ds.stream.order import Position
from bali_ds.stream.settings import StreamSettings
from bali_ds.training.checkpoint import Checkpoints, Progress
from bali_ds.training.cluster import Cluster
from bali_ds.training.communication import Communication
from bali_ds.training.engine import build_engine, set_learning_rates
from bali_ds.training.generated import write_generated
from bali_ds.training.guard import Guard, Verdict
from bali_ds.training.meter import Meter
from bali_ds.training.rank_errors import raise_on_every_rank
from bali_ds.training.run import Data, announcement, prepare
from bali_ds.training.schedule import learning_rate_factor
from bali_ds.training.startup import started
from bali_ds.training.stopping import StopRequest
from bali_ds.training.stragglers import Stragglers
from bali_ds.training.telemetry import Telemetry
from bali_ds.training.validation import validate
from bali_ds.training.watchdog import Watchdog


def train(recipe: Recipe, *, resume: bool = True) -> None:
    """Train the recipe's model from its newest complete checkpoint, or from the start, to its last step.

    Every rank that the launcher started calls this. When it returns, `recipe.directory` holds a complete
    checkpoint of the last step.

    Args:
        recipe: the run.
        resume: whether to go on from a checkpoint; otherwise an existing run is removed.

    Raises:
        InputError: recipe, data and machine do not fit together, or differ between the ranks.
        Diverged: loss or gradient is no number, or the loss jumped too often.
        Stopped: a signal, the stop file or the launcher's end came first; a checkpoint is saved.
        RankFailed: another rank failed, or a loader worker.
        LostRank: another rank is gone.
    """
    with started(recipe) as (cluster, data, numbers, settings):
        with raise_on_every_rank(cluster):
            if cluster.first:
                if not resume:
                    shutil.rmtree(recipe.directory, ignore_errors=True)
                prepare(recipe)
            aligner = build_aligner(recipe, 2 * data.graph.num_relations, data.shards)
        flops = StepFlops.of(aligner)
        engine = build_engine(aligner, recipe, settings)
        checkpoints = Checkpoints(
            recipe.directory / "checkpoints",
            cluster,
            recipe.checkpoints,
            identity={
                "data": data.shards.fingerprint,
                "world size": cluster.world_size,
                "ZeRO stage": engine.zero_optimization_stage(),
            },
        )
        progress = checkpoints.restore(engine) or Progress(0, Position())
        if cluster.first:
            print(announcement(recipe, data, engine.module, numbers, progress), flush=True)
        guard = Guard(recipe, cluster, data, engine, checkpoints)
        communication = Communication(cluster.device)
        meter = Meter(engine, cluster, guard.gradients, flops, communication)
        stragglers = Stragglers(engine.module, cluster)
        training = _Training(recipe, numbers, cluster, data, engine, checkpoints, guard, meter, stragglers)
        with communication.watching():
            while progress.step < numbers.steps:
                training.go_on(progress)
                progress = checkpoints.restore(engine) or Progress(0, Position())
            if recipe.objective.dual.weight:
                write_generated(engine, recipe, data, cluster)


@dataclass
class _Training:
    """What the loop works with."""

    recipe: Recipe
    numbers: Arithmetic
    cluster: Cluster
    data: Data
    engine: deepspeed.DeepSpeedEngine
    checkpoints: Checkpoints

    guard: Guard
    meter: Meter
    stragglers: Stragglers

    def go_on(self, progress: Progress) -> None:
        """Take all steps from `progress` to the last, or until the loss jumps and only a checkpoint is good."""
        recipe, cluster = self.recipe, self.cluster
        held_out = self._held_out()
        loader = self._loader(progress.position)
        telemetry = self._telemetry(progress)
        stop = StopRequest(cluster, recipe.directory / "stop", recipe.guards)
        watchdog = Watchdog(recipe.directory / f"stacks/rank-{cluster.rank}.txt", 60 * recipe.guards.step_minutes)
        with stop.listening(), watchdog.watching(), closing(loader), closing(telemetry):
            while progress.step < self.numbers.steps:
                watchdog.begins(progress.step + 1)
                asked = time.monotonic()
                batch = stop.next_of(loader)
                waited = time.monotonic() - asked
                if (reason := stop.agreed()) or batch is None:
                    self.checkpoints.save(self.engine, progress)
                    stop.leave(str(reason), step=progress.step, saved=self.checkpoints.finish())
                self.checkpoints.advance()
                if self.guard.leaves_out(batch):
                    progress = Progress(progress.step, batch.position_after)
                    continue

                verdict, facts = self._step(progress, batch)
                if verdict is Verdict.RETURN:
                    return
                progress = Progress(progress.step + (verdict is Verdict.SOUND), batch.position_after)
                if verdict is Verdict.LEAVE_OUT:
                    continue

                telemetry.record(progress, *facts, batch=batch, waited=waited)
                if progress.step % recipe.log_every == 0 and (slow := self.stragglers.report()) and cluster.first:
                    print(slow, flush=True)
                if held_out and self._due(progress, recipe.validation.every):
                    telemetry.write(progress.step, validate(self.engine, held_out, cluster, stop))
                if progress.step == self.numbers.steps or self.checkpoints.due(progress.step):
                    self.checkpoints.save(self.engine, progress)

    def _step(self, progress: Progress, batch: Step) -> tuple[Verdict, tuple[dict[str, torch.Tensor], float]]:
        """Take one optimiser step if it is sound; return the model's facts and the text encoder's rate too."""
        step = progress.step
        factor = learning_rate_factor(step, steps=self.numbers.steps, warmup_steps=self.numbers.warmup_steps)
        set_learning_rates(self.engine, factor)
        # Dropout is a function of step and rank, so a resumed run repeats it without any saved state.
        torch.manual_seed(int(derive(self.recipe.seed, "dropout", step, self.cluster.rank)[0] >> 1))
        self.stragglers.begins(batch.chunks)
        loss, parts = self.engine([chunk.to(self.cluster.device) for chunk in batch.chunks])
        self.engine.backward(self.guard.gradients.watched(loss))
        verdict = self.guard.verdict(progress, batch, parts)
        if verdict is Verdict.LEAVE_OUT:
            self.guard.drop_gradients()
        else:
            self.engine.step()
        return verdict, (parts, self.recipe.optimiser.text_learning_rate * factor)

    def _due(self, progress: Progress, every: int) -> bool:
        return progress.step == self.numbers.steps or bool(every and progress.step % every == 0)

    def _loader(self, start: Position) -> Loader:
        recipe, cluster = self.recipe, self.cluster
        return Loader(
            self.data.shards,
            self.data.graph,
            StreamSettings.of(recipe),
            global_batch=recipe.batch.passages,
            chunks=recipe.batch.chunks,
            rank=cluster.rank,
            world_size=cluster.world_size,
            workers=recipe.data.workers,
            start=start,
            pin_memory=cluster.device.type == "cuda",
            quarantine=recipe.directory / f"quarantine-{cluster.rank}.jsonl",
        )

    def _telemetry(self, progress: Progress) -> Telemetry:
        return Telemetry(
            self.recipe.directory,
            self.cluster,
            self.meter,
            steps=self.numbers.steps,
            first_step=progress.step,
            every=self.recipe.log_every,
            passages=self.recipe.batch.passages,
            epoch_samples=self.numbers.training_passages,
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
