"""Length buckets: packed sequences of similar length as rows of one matrix, cut where padding is least."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bali_ds.data.batch import PackedSequences
from bali_ds.data.sequences import Ints, starts, within


class LengthBucket(NamedTuple):
    """Consecutive packed sequences as a matrix; n sequences of at most L tokens, T' tokens in all.

    Attributes:
        size: T'.
        shape: n and L.
        cells: int64 [T'], the cell of each token, row by row; None where all are of length L.
        sources: int64 [n * L], the token of each cell, that of padding is the last of its row; None where `cells` is.
        valid: bool [n, L], false at padding; None where `cells` is.
    """

    size: int
    shape: tuple[int, int]
    cells: Tensor | None = None
    sources: Tensor | None = None
    valid: Tensor | None = None

    def unpack(self, values: Tensor) -> Tensor:
        """Return the rows [n, L, ...] of the bucket's packed values [T', ...]."""
        cells = values if self.sources is None else values.index_select(0, self.sources)
        return cells.unflatten(0, self.shape)

    def pack(self, rows: Tensor) -> Tensor:
        """Return the packed values [T', ...] of rows [n, L, ...]."""
        flat = rows.flatten(0, 1)
        return flat if self.cells is None else flat.index_select(0, self.cells)


def buckets_of_packs(packs: Sequence[PackedSequences], count: int) -> list[LengthBucket]:
    """Return at most `count` buckets for each of several packs, whose tokens follow each other."""
    return [bucket for pack in packs for bucket in length_buckets(pack.lengths.numpy(), count, pack.input_ids.device)]


def length_buckets(lengths: Ints, count: int, device: torch.device | None = None) -> list[LengthBucket]:
    """Return at most `count` buckets that hold packed sequences with the least padding that so many allow.

    Args:
        lengths: int64 [n], ascending.
        count: most buckets.
        device: of the buckets' tensors.
    """
    numbers = np.searchsorted(bucket_widths(lengths, count), lengths)
    ends = np.cumsum(np.bincount(numbers)) if lengths.size else lengths
    buckets, first = [], 0
    for end in ends.tolist():
        own = lengths[first:end]
        height, width, size = own.size, int(own[-1]), int(own.sum())
        bucket = LengthBucket(size, (height, width))
        if size < height * width:
            places = np.arange(width)
            arrays = (
                np.repeat(np.arange(height) * width, own) + within(own),
                (starts(own)[:, None] + np.minimum(places, own[:, None] - 1)).ravel(),
                places < own[:, None],
            )
            cells, sources, valid = (torch.from_numpy(each).to(device) for each in arrays)
            bucket = bucket._replace(cells=cells, sources=sources, valid=valid)
        buckets.append(bucket)
        first = end
    return buckets


def bucket_widths(lengths: Ints, count: int) -> Ints:
    """Return the widths of at most `count` buckets, ascending, that hold all sequences with the least padding.

    Dynamic programming over the distinct lengths: the cheapest way to put the shortest j of them into b buckets
    ends in a bucket from i + 1 to j, after the cheapest way to put i of them into b - 1.
    """
    distinct, sequences = np.unique(lengths, return_counts=True)
    if distinct.size <= count:
        return distinct
    held = np.concatenate([[0], np.cumsum(sequences)])
    # area[i, j]: positions of a bucket that holds the distinct lengths i, ..., j; infinite where i > j.
    area = np.triu((held[1:] - held[:-1, None]) * distinct).astype(np.float64)
    area[np.tri(distinct.size, k=-1, dtype=bool)] = np.inf
    cheapest, cuts = area[0], []
    for _ in range(count - 1):
        totals = cheapest[:-1, None] + area[1:]
        cuts.append(totals.argmin(axis=0))
        cheapest = totals.min(axis=0)
    last, widths = distinct.size - 1, [distinct.size - 1]
    for cut in reversed(cuts):
        last = int(cut[last])
        widths.append(last)
    return distinct[widths[::-1]]
