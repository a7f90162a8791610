"""The training step: forward, backward, stability checks and update, the same for training, replay and tests."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from bali_ds.checkpoint.manager import RunProgress
from bali_ds.data.loader import Step
from bali_ds.training.engine import discard_gradients, set_learning_rates


class Engine(Protocol):
    """The part of DeepSpeed's engine that a step uses."""

    device: torch.device

    def __call__(self, micro_batches: list[Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss of the step, and detached tensors by name."""

    def backward(self, loss: torch.Tensor) -> Any:
        """Compute gradients and reduce them over the ranks."""

    def step(self) -> Any:
        """Update the weights."""


class StepOutcome(enum.Enum):
    """The outcome of a step; a later member has precedence."""

    TAKEN = 1
    """The weights are updated."""
    SKIPPED = 2
    """The gradients are discarded; weights and optimizer state are unchanged."""
    ROLLED_BACK = 3
    """The weights are unusable; training returns to the newest checkpoint."""


class StepCallback:
    """A component that observes steps or decides about them; the methods of this base class do nothing."""

    def before_forward(self, progress: RunProgress, batch: Step) -> None:
        """Called with the progress before the step and this rank's samples."""

    def before_backward(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the loss to compute gradients of."""
        return loss

    def before_update(self, outputs: dict[str, torch.Tensor]) -> StepOutcome:  # noqa: ARG002
        """Return what to do with the gradients, the same on every rank; `outputs` are those of the forward pass."""
        return StepOutcome.TAKEN


@dataclass(frozen=True)
class StepResult:
    """What a step leads to.

    Attributes:
        outcome: whether the weights were updated.
        progress: the progress after the step.
        outputs: loss, its parts and the views of this rank, detached.
    """

    outcome: StepOutcome
    progress: RunProgress
    outputs: dict[str, torch.Tensor]


def train_step(
    engine: Engine,
    batch: Step,
    progress: RunProgress,
    *,
    learning_rate_factor: float | None = None,
    dropout_seed: int | None = None,
    callbacks: Sequence[StepCallback] = (),
) -> StepResult:
    """Take one optimizer step; every rank calls this with its own samples.

    Args:
        engine: the model with its optimizer.
        batch: this rank's samples, in micro-batches.
        progress: the progress before the step.
        learning_rate_factor: multiplies the base learning rates; None keeps the rates as they are.
        dropout_seed: seed of everything random in the passes; None continues torch's generator.
        callbacks: called in this order before the forward pass, the backward pass and the update.
    """
    if learning_rate_factor is not None:
        set_learning_rates(engine, learning_rate_factor)
    if dropout_seed is not None:
        torch.manual_seed(dropout_seed)

    for callback in callbacks:
        callback.before_forward(progress, batch)
    loss, outputs = engine([micro_batch.to(engine.device) for micro_batch in batch.micro_batches])
    for callback in callbacks:
        loss = callback.before_backward(loss)
    engine.backward(loss)

    outcomes = [callback.before_update(outputs) for callback in callbacks]
    outcome = max(outcomes, key=lambda each: each.value, default=StepOutcome.TAKEN)
    if outcome is StepOutcome.SKIPPED:
        discard_gradients(engine)
    else:
        engine.step()
    steps = progress.step + (outcome is StepOutcome.TAKEN)
    return StepResult(outcome, RunProgress(steps, batch.position_after), outputs)
