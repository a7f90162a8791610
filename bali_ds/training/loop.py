"""The training loop."""

import shutil
import time
from contextlib import closing
from dataclasses import dataclass

import deepspeed
import torch

from bali_ds.config import Recipe
from bali_ds.model.aligner import build_aligner
from bali_ds.preflight.arithmetic import Arithmetic, arithmetic
from bali_ds.randomness import derive
from bali_ds.stream.evaluation import evaluation_batches
from bali_ds.stream.loader import Loader, Step
from bali_ds.stream.order import Position
from bali_ds.stream.settings import StreamSettings
from bali_ds.training.checkpoint import Checkpoints, Progress
from bali_ds.training.cluster import Cluster, joined_cluster
from bali_ds.training.engine import build_engine, deepspeed_settings, set_learning_rates
from bali_ds.training.run import Data, announcement, prepare
from bali_ds.training.schedule import learning_rate_factor
from bali_ds.training.stopping import Stopped, StopRequest
from bali_ds.training.telemetry import Telemetry
from bali_ds.training.validation import validate


def train(recipe: Recipe, *, resume: bool = True) -> None:
    """Train the recipe's model from its newest complete checkpoint, or from the start, to its last step.

    Every rank that the launcher started calls this. When it returns, `recipe.directory` holds a complete
    checkpoint of the last step.

    Args:
        recipe: the run.
        resume: whether to go on from a checkpoint; otherwise an existing run is removed.

    Raises:
        InputError: recipe, data and machine do not fit together.
        FloatingPointError: the loss is no longer a number.
        Stopped: a signal, the stop file or the launcher's end came first; a checkpoint is saved.
    """
    with joined_cluster() as cluster:
        data = Data.open(recipe)
        numbers = arithmetic(recipe, cluster.world_size, len(data.shards.split("train")))
        settings = deepspeed_settings(recipe, numbers)
        if cluster.first:
            if not resume:
                shutil.rmtree(recipe.directory, ignore_errors=True)
            prepare(recipe)
        cluster.wait()
        engine = build_engine(build_aligner(recipe, 2 * data.graph.num_relations), recipe, settings)
        checkpoints = Checkpoints(
            recipe.directory / "checkpoints",
            cluster,
            keep=recipe.checkpoints.keep,
            identity={
                "data": data.shards.fingerprint,
                "world size": cluster.world_size,
                "ZeRO stage": engine.zero_optimization_stage(),
            },
        )
        progress = checkpoints.restore(engine) or Progress(0, Position())
        if cluster.first:
            print(announcement(recipe, data, engine.module, numbers, progress), flush=True)
        if progress.step < numbers.steps:
            _Training(recipe, numbers, cluster, data, engine, checkpoints).go_on(progress)


@dataclass
class _Training:
    """What the loop works with."""

    recipe: Recipe
    numbers: Arithmetic
    cluster: Cluster
    data: Data
    engine: deepspeed.DeepSpeedEngine
    checkpoints: Checkpoints

    def go_on(self, progress: Progress) -> None:
        """Take all steps from `progress` to the last."""
        recipe, cluster = self.recipe, self.cluster
        held_out = self._held_out()
        loader = Loader(
            self.data.shards,
            self.data.graph,
            StreamSettings.of(recipe),
            global_batch=recipe.batch.passages,
            chunks=recipe.batch.chunks,
            rank=cluster.rank,
            world_size=cluster.world_size,
            workers=recipe.data.workers,
            start=progress.position,
            pin_memory=cluster.device.type == "cuda",
            quarantine=recipe.directory / f"quarantine-{cluster.rank}.jsonl",
        )
        telemetry = Telemetry(
            recipe.directory,
            cluster,
            steps=self.numbers.steps,
            first_step=progress.step,
            every=recipe.log_every,
            passages=recipe.batch.passages,
            epoch_samples=self.numbers.training_passages,
        )
        stop = StopRequest(cluster, recipe.directory / "stop")
        with stop.listening(), closing(loader), closing(telemetry):
            batches = iter(loader)
            while progress.step < self.numbers.steps:
                asked = time.monotonic()
                batch = next(batches)
                waited = time.monotonic() - asked

                facts = self._step(progress.step, batch)
                progress = Progress(progress.step + 1, batch.position_after)

                telemetry.record(progress, *facts, waited=waited)
                if held_out and self._due(progress, recipe.validation.every):
                    telemetry.write(progress.step, validate(self.engine, held_out, cluster))
                reason = stop.agreed()
                if reason or self._due(progress, recipe.checkpoints.every):
                    self.checkpoints.save(self.engine, progress)
                if reason and progress.step < self.numbers.steps:
                    raise Stopped(
                        f"stopped by {reason} after step {progress.step}; the same command goes on from there"
                    )

    def _step(self, step: int, batch: Step) -> tuple[dict[str, torch.Tensor], float]:
        """Take one optimiser step; return the loss with its parts, and the learning rate of the text encoder."""
        factor = learning_rate_factor(step, steps=self.numbers.steps, warmup_steps=self.numbers.warmup_steps)
        set_learning_rates(self.engine, factor)
        # Dropout is a function of step and rank, so a resumed run repeats it without any saved state.
        torch.manual_seed(int(derive(self.recipe.seed, "dropout", step, self.cluster.rank)[0] >> 1))
        loss, parts = self.engine([chunk.to(self.cluster.device) for chunk in batch.chunks])
        self.engine.backward(loss)
        self.engine.step()
        losses = {name: parts[name] for name in ("loss", "contrastive", "masked_language_model")}
        return losses, self.recipe.optimiser.text_learning_rate * factor

    def _due(self, progress: Progress, every: int) -> bool:
        return progress.step == self.numbers.steps or bool(every and progress.step % every == 0)

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
