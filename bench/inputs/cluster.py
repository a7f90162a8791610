"""Simulated failures and stragglers of a cluster."""

import math

import numpy as np

# 419 unexpected interruptions in 54 days of 16,384 GPUs (Dubey et al., "The Llama 3 Herd of Models", 2024, 3.3.4).
FAILURES_PER_GPU_HOUR = 419 / (54 * 24 * 16_384)


def best_interval(checkpoint_seconds: float, mean_time_between_failures: float) -> float:
    """Return the seconds between checkpoints that lose least: sqrt(2 C M) (Young, CACM 1974)."""
    return math.sqrt(2 * checkpoint_seconds * mean_time_between_failures)


def lost_fraction(
    ranks: int,
    interval: float,
    checkpoint_seconds: float,
    *,
    restart: float,
    factor: float = 1.0,
    hours: float = 20_000,
) -> float:
    """Return the simulated fraction of time that is lost to checkpoints, failures, repeated work and restarts.

    Args:
        ranks: number of GPUs, any of which ends the job when it fails.
        interval: seconds of training between checkpoints.
        checkpoint_seconds: seconds that a checkpoint stops training.
        restart: seconds from a failure until training continues.
        factor: of the failure rate.
        hours: simulated time.
    """
    draw = np.random.default_rng(29)
    mean = 3600 / (FAILURES_PER_GPU_HOUR * factor * ranks)
    count = max(1000, math.ceil(3600 * hours / mean))
    times = draw.exponential(mean, count)
    kept = np.floor(times / (interval + checkpoint_seconds)) * interval
    return float(1 - kept.sum() / (times.sum() + count * restart))


def straggler_factor(ranks: int, deviation: float, *, steps: int = 400) -> float:
    """Return how many times as long a step takes as on one rank, if every rank's time varies independently.

    Args:
        ranks: number of ranks, which wait for the slowest in every step.
        deviation: standard deviation of a rank's time, relative to its mean (normal distribution).
        steps: simulated steps.
    """
    draw = np.random.default_rng(29)
    return float(np.mean([1 + deviation * draw.standard_normal(ranks).max() for _ in range(steps)]))
