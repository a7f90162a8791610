"""Learning rates as a function of the optimiser step."""

import math


def learning_rate_factor(step: int, *, steps: int, warmup_steps: int) -> float:
    """Return what the base learning rates are multiplied by in one optimiser step.

    Linear warm-up from 1/warmup_steps to 1, then half a cosine that would reach 0 right after the last step.

    Args:
        step: steps taken so far, 0 in the first.
        steps: steps of the whole run, counted over all ranks, resumptions included.
        warmup_steps: steps of the warm-up, fewer than `steps`.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / (steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))
