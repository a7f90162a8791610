"""Nearest neighbor search by inner product: exact in bounded memory, or approximate with faiss."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

QUERY_BLOCK = 1024
SCORE_BYTES = 128 * 2**20


def score_blocks(queries: Vectors, keys: Vectors) -> Iterator[tuple[slice, slice, Vectors]]:
    """Yield (rows of queries, rows of keys, inner products) over all pairs, in blocks of at most SCORE_BYTES.

    For each block of queries, the blocks of keys come in ascending order.
    """
    columns = max(1, SCORE_BYTES // (4 * QUERY_BLOCK))
    for top in range(0, len(queries), QUERY_BLOCK):
        rows = slice(top, min(top + QUERY_BLOCK, len(queries)))
        for left in range(0, len(keys), columns):
            block = slice(left, min(left + columns, len(keys)))
            yield rows, block, queries[rows] @ keys[block].T


def nearest(queries: Vectors, keys: Vectors, count: int) -> tuple[NDArray[np.int64], Vectors]:
    """Return the `count` keys with the largest inner product with each query, exactly.

    Args:
        queries: float32 [n, d].
        keys: float32 [m, d]; may be memory-mapped.
        count: number of keys per query; at most m are returned.

    Returns:
        rows of keys, int64 [n, count], in descending order of inner product, and the inner products, float32
        [n, count]. Keys with equal inner products keep their order.
    """
    count = min(count, len(keys))
    best = np.full((len(queries), count), -np.inf, np.float32)
    found = np.full((len(queries), count), -1, np.int64)
    for rows, block, scores in score_blocks(queries, keys):
        kept = _largest(scores, min(count, scores.shape[1]))
        merged_scores = np.concatenate([best[rows], np.take_along_axis(scores, kept, 1)], axis=1)
        merged_found = np.concatenate([found[rows], kept + block.start], axis=1)
        order = np.argsort(-merged_scores, axis=1, kind="stable")[:, :count]
        best[rows] = np.take_along_axis(merged_scores, order, 1)
        found[rows] = np.take_along_axis(merged_found, order, 1)
    return found, best


def _largest(scores: Vectors, count: int) -> NDArray[np.int64]:
    """Return the columns of the `count` largest scores of each row in descending order, stable for equal scores."""
    if count < scores.shape[1]:
        threshold = np.partition(scores, -count, axis=1)[:, -count, None]
    else:
        threshold = np.full((len(scores), 1), -np.inf, np.float32)
    chosen = np.empty((len(scores), count), np.int64)
    for row in range(len(scores)):
        columns = np.flatnonzero(scores[row] >= threshold[row])
        chosen[row] = columns[np.argsort(-scores[row, columns], kind="stable")[:count]]
    return chosen


class InvertedFile:
    """Approximate index (faiss IVF with 8-bit scalar quantization): a search reads the nearest cells only.

    It takes one byte per dimension and key, and does not refer to the keys.
    """

    def __init__(self, keys: Vectors, *, probes: int = 32) -> None:
        """Build the index.

        Args:
            keys: float32 [m, d], unit length; may be memory-mapped.
            probes: cells that are searched for each query; more is slower and more exact.
        """
        import faiss

        width, cells = keys.shape[1], max(1, min(int(4 * len(keys) ** 0.5), len(keys) // 39))
        self._index = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatIP(width), width, cells, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
        )
        step = max(1, len(keys) // (cells * 64))
        self._index.train(np.ascontiguousarray(keys[::step]))
        for start in range(0, len(keys), 2**18):
            self._index.add(np.ascontiguousarray(keys[start : start + 2**18]))
        self._index.nprobe = min(probes, cells)

    def nearest(self, queries: Vectors, count: int) -> tuple[NDArray[np.int64], Vectors]:
        """Return up to `count` keys per query, as the function `nearest` does; -1 fills rows with fewer."""
        scores, found = self._index.search(np.ascontiguousarray(queries), count)
        return found, scores
