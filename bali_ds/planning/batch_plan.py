"""Batch and schedule arithmetic of a run: what follows from recipe, data and ranks."""

from dataclasses import dataclass

from bali_ds.config import Recipe
from bali_ds.errors import InputError


@dataclass(frozen=True)
class Arithmetic:
    """Every number that divides a run into steps, ranks and micro_batches.

    Attributes:
        ranks: processes that train.
        passages_per_step: over all ranks.
        passages_per_rank: of one step.
        micro_batches: micro-batches that a rank cuts its passages into.
        passages_per_micro_batch: in one micro-batch.
        training_passages: of one epoch.
        steps_per_epoch: whole steps; the tail of an epoch is left out.
        left_out: passages of that tail, others in each epoch.
        steps: of the whole run.
        epochs: visits of each passage.
        warmup_steps: of linearly rising learning rate.
    """

    ranks: int
    passages_per_step: int
    passages_per_rank: int
    micro_batches: int
    passages_per_micro_batch: int
    training_passages: int
    steps_per_epoch: int
    left_out: int
    steps: int
    epochs: float
    warmup_steps: int


def arithmetic(recipe: Recipe, ranks: int, training_passages: int) -> Arithmetic:
    """Return the numbers of a run.

    Raises:
        InputError: the batch does not divide by ranks and micro_batches, or exceeds the data.
    """
    batch, micro_batches = recipe.batch.passages, recipe.batch.micro_batches
    if batch % (ranks * micro_batches):
        unit = ranks * micro_batches
        nearest = [size for size in (batch - batch % unit, batch - batch % unit + unit) if size]
        raise InputError(
            f"batch.passages: {batch} does not divide by {ranks} ranks x {micro_batches} micro_batches; "
            f"use {' or '.join(map(str, nearest))}"
        )
    if batch > training_passages:
        raise InputError(f"batch.passages: {batch} is more than the {training_passages} training passages there are")
    per_epoch = training_passages // batch
    steps = recipe.steps if recipe.steps is not None else max(1, round((recipe.epochs or 0) * per_epoch))
    return Arithmetic(
        ranks=ranks,
        passages_per_step=batch,
        passages_per_rank=batch // ranks,
        micro_batches=micro_batches,
        passages_per_micro_batch=batch // (ranks * micro_batches),
        training_passages=training_passages,
        steps_per_epoch=per_epoch,
        left_out=training_passages - per_epoch * batch,
        steps=steps,
        epochs=steps * batch / training_passages,
        warmup_steps=min(round(recipe.optimizer.warmup * steps), steps - 1),
    )
