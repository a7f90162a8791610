"""Bootstrap confidence intervals over the examples of an evaluation."""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
LEVEL = 0.95
INDICES_AT_ONCE = 2**24


def intervals(measures: Mapping[str, NDArray[np.float64]], seed: int = 0) -> dict[str, dict[str, float]]:
    """Return mean and percentile interval of each measure (Efron and Tibshirani, 1993, chapter 13).

    Args:
        measures: float [n] by name, one value per example, n >= 1; all measures use the same resamples.
        seed: seed of the resampling.

    Returns:
        {"value", "low", "high"} by name: the mean and its 95 % interval over 1,000 resamples of the examples.
    """
    table = np.stack([np.asarray(values, np.float64) for values in measures.values()], axis=1)
    means = np.concatenate(list(_resampled_means(table, seed)))
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return {
        name: {"value": float(table[:, column].mean()), "low": float(low[column]), "high": float(high[column])}
        for column, name in enumerate(measures)
    }


def paired_difference(first: NDArray[np.float64], second: NDArray[np.float64], seed: int = 0) -> dict[str, float]:
    """Return the mean of `second - first` for two models on the same examples, with interval and p-value.

    The two-sided p-value is twice the fraction of resamples on the other side of zero, at most 1 and at least
    2 / (resamples + 1).
    """
    difference = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    means = np.concatenate(list(_resampled_means(difference[:, None], seed)))[:, 0]
    tail = min(int((means <= 0).sum()), int((means >= 0).sum()))
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    p = min(1.0, 2 * (tail + 1) / (len(means) + 1))
    return {"value": float(difference.mean()), "low": float(low), "high": float(high), "p": p}


def _resampled_means(table: NDArray[np.float64], seed: int) -> Iterator[NDArray[np.float64]]:
    generator = np.random.default_rng(seed)
    count = len(table)
    at_once = max(1, INDICES_AT_ONCE // count)
    for start in range(0, RESAMPLES, at_once):
        rows = generator.integers(count, size=(min(at_once, RESAMPLES - start), count))
        yield np.stack([column[rows].mean(axis=1) for column in table.T], axis=1)
