"""Bootstrap confidence intervals over the examples of an evaluation."""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
LEVEL = 0.95
INDICES_AT_ONCE = 2**24


def intervals(
    measures: Mapping[str, NDArray[np.float64]], seed: int = 0, documents: NDArray[np.int64] | None = None
) -> dict[str, dict[str, float]]:
    """Return mean and percentile interval of each measure (Efron and Tibshirani, 1993, chapter 13).

    Args:
        measures: float [n] by name, one value per example, n >= 1; all measures use the same resamples.
        seed: seed of the resampling.
        documents: int64 [n], the document of each example, from 0 on: documents are resampled, with all of their
            examples, which are not independent of each other. None resamples examples.

    Returns:
        {"value", "low", "high"} by name: the mean and its 95 % interval over 1,000 resamples of the examples.
    """
    table = np.stack([np.asarray(values, np.float64) for values in measures.values()], axis=1)
    means = np.concatenate(list(_resampled_means(table, seed, documents)))
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return {
        name: {"value": float(table[:, column].mean()), "low": float(low[column]), "high": float(high[column])}
        for column, name in enumerate(measures)
    }


def paired_difference(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    seed: int = 0,
    documents: NDArray[np.int64] | None = None,
) -> dict[str, float]:
    """Return the mean of `second - first` for two models on the same examples, with interval and p-value.

    The two-sided p-value is twice the fraction of resamples on the other side of zero, at most 1 and at least
    2 / (resamples + 1).
    """
    difference = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    means = np.concatenate(list(_resampled_means(difference[:, None], seed, documents)))[:, 0]
    tail = min(int((means <= 0).sum()), int((means >= 0).sum()))
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    p = min(1.0, 2 * (tail + 1) / (len(means) + 1))
    return {"value": float(difference.mean()), "low": float(low), "high": float(high), "p": p}


def _resampled_means(
    table: NDArray[np.float64], seed: int, documents: NDArray[np.int64] | None
) -> Iterator[NDArray[np.float64]]:
    generator = np.random.default_rng(seed)
    if documents is not None:
        sums, sizes = document_sums(table, documents)
        weights = document_weights(len(sizes), generator)
        yield (weights @ sums) / np.maximum(weights @ sizes, 1)[:, None]
        return
    count = len(table)
    at_once = max(1, INDICES_AT_ONCE // count)
    for start in range(0, RESAMPLES, at_once):
        rows = generator.integers(count, size=(min(at_once, RESAMPLES - start), count))
        yield np.stack([column[rows].mean(axis=1) for column in table.T], axis=1)


def document_sums(
    table: NDArray[np.float64], documents: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the sums of columns by document, float64 [documents, k], and the examples of each, for documents with any.

    Args:
        table: float64 [n, k].
        documents: int64 [n], the document of each row.
    """
    distinct, rows = np.unique(documents, return_inverse=True)
    sums = np.zeros((len(distinct), table.shape[1]))
    np.add.at(sums, rows, table)
    return sums, np.bincount(rows)


def document_weights(count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Return how often each document occurs in each resample, int64 [RESAMPLES, count]."""
    return generator.multinomial(count, np.full(count, 1 / count), RESAMPLES)
