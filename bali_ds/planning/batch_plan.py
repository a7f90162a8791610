"""Sizes of batches, micro-batches, epochs and warm-up that follow from a recipe, the data and the number of ranks."""

from dataclasses import dataclass

from bali_ds.config import Recipe
from bali_ds.errors import InputError


@dataclass(frozen=True)
class BatchPlan:
    """How a run is divided into steps, ranks and micro-batches.

    Attributes:
        ranks: number of training processes.
        passages_per_step: the global batch size.
        passages_per_rank: passages of one rank in one step.
        micro_batches: micro-batches of one rank in one step.
        passages_per_micro_batch: passages of one micro-batch.
        training_passages: passages of one epoch.
        steps_per_epoch: full steps of one epoch.
        dropped_passages: passages at the end of an epoch that do not fill a step; other passages in each epoch.
        steps: optimizer steps of the run.
        epochs: how often the run reads each passage.
        warmup_steps: steps with linear learning rate warm-up.
    """

    ranks: int
    passages_per_step: int
    passages_per_rank: int
    micro_batches: int
    passages_per_micro_batch: int
    training_passages: int
    steps_per_epoch: int
    dropped_passages: int
    steps: int
    epochs: float
    warmup_steps: int


def plan_batches(recipe: Recipe, ranks: int, training_passages: int) -> BatchPlan:
    """Return the batch plan of a run.

    Raises:
        InputError: the batch cannot be divided evenly by ranks and micro-batches, or is larger than the data.
    """
    batch, micro_batches = recipe.batch.passages, recipe.batch.micro_batches
    unit = ranks * micro_batches
    if batch % unit:
        multiples = [size for size in (batch - batch % unit, batch - batch % unit + unit) if size]
        raise InputError(
            f"batch.passages: {batch} is not divisible by {ranks} ranks x {micro_batches} micro-batches; "
            f"use {' or '.join(map(str, multiples))}"
        )
    if batch > training_passages:
        raise InputError(
            f"batch.passages: {batch} is larger than the training split of {training_passages} passages; "
            "use a smaller batch or build more shards"
        )
    steps_per_epoch = training_passages // batch
    steps = recipe.steps if recipe.steps is not None else max(1, round((recipe.epochs or 0) * steps_per_epoch))
    return BatchPlan(
        ranks=ranks,
        passages_per_step=batch,
        passages_per_rank=batch // ranks,
        micro_batches=micro_batches,
        passages_per_micro_batch=batch // unit,
        training_passages=training_passages,
        steps_per_epoch=steps_per_epoch,
        dropped_passages=training_passages - steps_per_epoch * batch,
        steps=steps,
        epochs=steps * batch / training_passages,
        warmup_steps=min(round(recipe.optimizer.warmup * steps), steps - 1),
    )
