"""Nearest names of a dictionary: exact, in bounded memory, or through faiss."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

QUERY_BLOCK = 1024
SCORE_BYTES = 128 * 2**20


def score_blocks(queries: Vectors, keys: Vectors) -> Iterator[tuple[slice, slice, Vectors]]:
    """Yield (rows of queries, rows of keys, inner products) over all pairs, at most SCORE_BYTES of products at once.

    For each block of queries the blocks of keys come in order.
    """
    columns = max(1, SCORE_BYTES // (4 * QUERY_BLOCK))
    for top in range(0, len(queries), QUERY_BLOCK):
        rows = slice(top, min(top + QUERY_BLOCK, len(queries)))
        for left in range(0, len(keys), columns):
            block = slice(left, min(left + columns, len(keys)))
            yield rows, block, queries[rows] @ keys[block].T


def nearest(queries: Vectors, keys: Vectors, count: int) -> tuple[NDArray[np.int64], Vectors]:
    """Return the `count` keys of greatest inner product with each query, exactly.

    Args:
        queries: float32 [n, d].
        keys: float32 [m, d]; may be memory-mapped.
        count: how many to return; at most m are.

    Returns:
        rows of keys, int64 [n, count], best first, and their inner products, float32 [n, count].
        Among equal products the key that comes first wins.
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
    """Columns of the `count` largest scores of each row, in descending order, the earlier column first among equals."""
    if count < scores.shape[1]:
        threshold = np.partition(scores, -count, axis=1)[:, -count, None]
    else:
        threshold = np.full((len(scores), 1), -np.inf, np.float32)
    chosen = np.empty((len(scores), count), np.int64)
    for row in range(len(scores)):
        columns = np.flatnonzero(scores[row] >= threshold[row])
        chosen[row] = columns[np.argsort(-scores[row, columns], kind="stable")[:count]]
    return chosen


def nearest_approximate(
    queries: Vectors, keys: Vectors, count: int, *, lists: int | None = None, probes: int = 32
) -> tuple[NDArray[np.int64], Vectors]:
    """Return the `count` nearest keys by inner product through a faiss inverted file with 8-bit scalar quantisation.

    Memory is one byte a dimension and key, so millions of names fit; a row of -1 marks what was not found.

    Args:
        queries: float32 [n, d], unit length.
        keys: float32 [m, d], unit length.
        count: how many to return.
        lists: cells of the inverted file; None takes about 4 times the square root of m.
        probes: cells searched for each query; more is slower and more exact.
    """
    import faiss

    width = keys.shape[1]
    cells = max(1, min(lists or int(4 * len(keys) ** 0.5), len(keys) // 39 or 1))
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(width), width, cells, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
    step = max(1, len(keys) // (cells * 64))
    index.train(np.ascontiguousarray(keys[::step]))
    for start in range(0, len(keys), 2**18):
        index.add(np.ascontiguousarray(keys[start : start + 2**18]))
    index.nprobe = min(probes, cells)
    scores, found = index.search(np.ascontiguousarray(queries), count)
    return found, scores
