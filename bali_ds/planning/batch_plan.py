"""Batch and schedule arithmetic of a run: what follows from recipe, data and ranks."""

from dataclasses import dataclass

from bali_ds.config import Recipe
from bali_ds.errors import InputError


@dataclass(frozen=True)
class Arithmetic:
    """Every number that divides a run into steps, ranks and chunks.

    Attributes:
        ranks: processes that train.
        passages_per_step: over all ranks.
        passages_per_rank: of one step.
        chunks: micro-batches that a rank cuts its passages into.
        passages_per_chunk: in one micro-batch.
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
    chunks: int
    passages_per_chunk: int
    training_passages: int
    steps_per_epoch: int
    left_out: int
    steps: int
    epochs: float
    warmup_steps: int


def arithmetic(recipe: Recipe, ranks: int, training_passages: int) -> Arithmetic:
    """Return the numbers of a run.

    Raises:
        InputError: the batch does not divide by ranks and chunks, or exceeds the data.
    """
    batch, chunks = recipe.batch.passages, recipe.batch.chunks
    if batch % (ranks * chunks):
        unit = ranks * chunks
        nearest = [size for size in (batch - batch % unit, batch - batch % unit + unit) if size]
        raise InputError(
            f"batch.passages: {batch} does not divide by {ranks} ranks x {chunks} chunks; "
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
        chunks=chunks,
        passages_per_chunk=batch // (ranks * chunks),
        training_passages=training_passages,
        steps_per_epoch=per_epoch,
        left_out=training_passages - per_epoch * batch,
        steps=steps,
        epochs=steps * batch / training_passages,
        warmup_steps=min(round(recipe.optimiser.warmup * steps), steps - 1),
    )
