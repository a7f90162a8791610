"""Passes over pairs of views that share a concept id, found by sorting instead of comparing all pairs.

In blocks sorted by concept id, the pairs of one concept form a rectangle. Rectangles of rare concepts are padded to
one shape and processed in batches, because many small calls would cost more than their arithmetic. The rectangle of a
concept that is frequent on either side is split. Similarities of positives are computed in float64, because positives
are what saturates: an error in s_ap is a relative error of the whole term.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bali_ds.losses.contrastive.sorted_views import BlockPair, ViewBlock
from bali_ds.losses.contrastive.workspace import Workspace

_FREQUENT_ROWS, _FREQUENT_COLUMNS = 16, 32  # a concept with that many rows or columns is frequent
_MOST_ROWS, _MOST_COLUMNS = 256, 2048  # of one part of a frequent concept's rectangle
_BATCH_BYTES = 1 << 22  # of float64 features processed at a time

# Called with cosines [..., anchors, positives], the anchors' side and their numbers in it [..., anchors]; returns one
# or more values for each pair.
PairFunction = Callable[[Tensor, int, Tensor], tuple[Tensor, ...]]


class Rectangles(NamedTuple):
    """A batch of rectangles of pairs of two blocks; no row and no column is in more than one of them.

    Attributes:
        rows: int64 [rectangles, rows], positions within the block; padding is in no pair.
        columns: int64 [rectangles, columns].
        row_numbers: int64 [rectangles, rows], the rows' numbers within their side.
        column_numbers: int64 [rectangles, columns].
        for_rows: bool [rectangles, rows, columns], whether the column is a positive of the row.
        for_columns: bool [rectangles, columns, rows], whether the row is a positive of the column.
        cosines: float64 [rectangles, rows, columns].
    """

    rows: Tensor
    columns: Tensor
    row_numbers: Tensor
    column_numbers: Tensor
    for_rows: Tensor
    for_columns: Tensor
    cosines: Tensor


@dataclass
class Positives:
    """The positive pairs between blocks, with their cosines cached between passes.

    Attributes:
        joint: whether both blocks are of one side, where a view is not a positive of itself.
        partners: for each side int64 [num_views], the number of the view's one positive on the other side, -1 if it
            has none; None if all views of the concept are positives.
        device: where the features are.
        resident: whether all features are available in every pass; if not, all cosines are cached.
        budget: bytes that may still be cached.
        cache: rectangles by (side, first row, rows, first column, columns) of the two blocks.
    """

    joint: bool
    partners: list[NDArray[np.int64]] | None
    device: torch.device
    resident: bool = True
    budget: int = 1 << 26
    cache: dict[tuple[int, ...], list[Rectangles]] = field(default_factory=dict)

    def precompute(self, rows: ViewBlock, columns: ViewBlock) -> None:
        """Compute and cache the cosines of all positive pairs of two blocks while their features are on this rank."""
        for _ in self.rectangles(rows, columns):
            pass

    def rectangles(self, rows: ViewBlock, columns: ViewBlock) -> Iterator[Rectangles]:
        """Yield all positive pairs of two blocks."""
        key = (rows.side, rows.start, len(rows), columns.start, len(columns))
        cached = self.cache.setdefault(key, [])
        yield from cached
        workspace = Workspace(self.device)
        width = 1 if rows.features is None else rows.features.shape[1]
        for number, (upper, left) in enumerate(
            _rectangles(rows.concept_ids.numpy(), columns.concept_ids.numpy(), _BATCH_BYTES // (8 * width))
        ):
            if number < len(cached):
                continue
            batch = self._build(rows, columns, upper, left, workspace)
            size = sum(each.nbytes for each in batch)
            # A prefix of the batches is cached, so that a batch's number says whether it is.
            if len(cached) == number and (not self.resident or size <= self.budget):
                self.budget -= size
                cached.append(batch)
            yield batch

    def _build(
        self,
        rows: ViewBlock,
        columns: ViewBlock,
        upper: NDArray[np.int64],
        left: NDArray[np.int64],
        workspace: Workspace,
    ) -> Rectangles:
        assert rows.features is not None
        assert columns.features is not None
        real = (upper >= 0)[:, :, None] & (left >= 0)[:, None, :]
        upper, left = upper.clip(min=0), left.clip(min=0)
        row_numbers, column_numbers = upper + rows.start, left + columns.start
        row_ids, column_ids = rows.concept_ids.numpy(), columns.concept_ids.numpy()
        for_rows = for_columns = real & (row_ids[upper][:, :, None] == column_ids[left][:, None, :])
        if self.joint:
            for_rows = for_columns = for_rows & (row_numbers[:, :, None] != column_numbers[:, None, :])
        if self.partners is not None:
            for_rows = real & (self.partners[rows.side][row_numbers][:, :, None] == column_numbers[:, None, :])
            for_columns = real & (self.partners[columns.side][column_numbers][:, None, :] == row_numbers[:, :, None])
        arrays = upper, left, row_numbers, column_numbers, for_rows, for_columns.transpose(0, 2, 1)
        tensors = [torch.from_numpy(each).to(self.device) for each in arrays]
        row_positions, column_positions = tensors[:2]
        exact_rows = _float64_features("rows", rows.features, row_positions, workspace)
        exact_columns = _float64_features("columns", columns.features, column_positions, workspace)
        return Rectangles._make([*tensors, exact_rows @ exact_columns.mT])

    def sums(self, function: PairFunction, pair: BlockPair) -> None:
        """Add the sums over each anchor's positives of the values of `function`, float64 [anchors, values]."""
        rows, columns, column_accumulator = pair.rows, pair.columns, pair.other_accumulator

        def add(accumulator: Tensor, anchors: Tensor, values: tuple[Tensor, ...], pairs: Tensor) -> None:
            sums = torch.stack([value.where(pairs, 0.0).sum(-1) for value in values], dim=-1)
            accumulator.index_add_(0, anchors.flatten(), sums.flatten(0, 1))

        for each in self.rectangles(rows, columns):
            add(pair.row_accumulator, each.rows, function(each.cosines, rows.side, each.row_numbers), each.for_rows)
            if column_accumulator is not None:
                values = function(each.cosines.mT, columns.side, each.column_numbers)
                add(column_accumulator, each.columns, values, each.for_columns)

    def farthest(self, pair: BlockPair) -> None:
        """Raise the accumulators, float64 [anchors], to the largest negated cosine of each anchor's positives."""

        def raise_to(accumulator: Tensor, anchors: Tensor, cosines: Tensor, pairs: Tensor) -> None:
            highest = (-cosines).where(pairs, -torch.inf).amax(-1)
            accumulator.scatter_reduce_(0, anchors.flatten(), highest.flatten(), "amax")

        for each in self.rectangles(pair.rows, pair.columns):
            raise_to(pair.row_accumulator, each.rows, each.cosines, each.for_rows)
            if pair.other_accumulator is not None:
                raise_to(pair.other_accumulator, each.columns, each.cosines.mT, each.for_columns)

    def gradients(self, function: PairFunction, pair: BlockPair) -> None:
        """Add the gradients by the features, divided by the logit scale, to the accumulators, float [views, d].

        `function` returns one value, the derivative by s_ap of the terms of anchor a.
        """
        rows, columns, row_accumulator, column_accumulator = *pair[:3], pair.other_accumulator
        assert rows.features is not None
        assert columns.features is not None
        for each in self.rectangles(rows, columns):
            (by_row,) = function(each.cosines, rows.side, each.row_numbers)
            (by_column,) = function(each.cosines.mT, columns.side, each.column_numbers)
            slopes = by_row.where(each.for_rows, 0.0) + by_column.where(each.for_columns, 0.0).mT
            slopes = slopes.to(row_accumulator.dtype)
            # Padding adds zeros to views whose own pairs are all in this rectangle, so no order of addition matters.
            # Selected features are not bound to names, so that those of one side are freed before the other's are made.
            row_accumulator.index_add_(
                0, each.rows.flatten(), (slopes @ columns.features[each.columns].to(slopes.dtype)).flatten(0, 1)
            )
            if column_accumulator is not None:
                column_accumulator.index_add_(
                    0, each.columns.flatten(), (slopes.mT @ rows.features[each.rows].to(slopes.dtype)).flatten(0, 1)
                )


def _float64_features(name: str, features: Tensor, positions: Tensor, workspace: Workspace) -> Tensor:
    """Return float64 [*positions.shape, d], the features at some positions."""
    shape = (*positions.shape, features.shape[1])
    selected = workspace.get(f"selected {name}", (positions.numel(), features.shape[1]), features.dtype)
    torch.index_select(features, 0, positions.flatten(), out=selected)
    return workspace.get(name, shape, torch.float64).copy_(selected.view(shape))


def _rectangles(
    row_ids: NDArray[np.int64], column_ids: NDArray[np.int64], views: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield positions of rows [rectangles, rows] and of columns [rectangles, columns], padded with -1.

    Args:
        row_ids: int64, sorted.
        column_ids: int64, sorted.
        views: the most rows and columns to yield at a time, unless one rectangle has more.
    """
    (ids, *rows), (others, *columns) = _runs(row_ids), _runs(column_ids)
    _, first, second = np.intersect1d(ids, others, assume_unique=True, return_indices=True)
    (row_starts, row_counts), (column_starts, column_counts) = (
        [each[shared] for each in runs] for runs, shared in ((rows, first), (columns, second))
    )
    frequent = (row_counts >= _FREQUENT_ROWS) | (column_counts >= _FREQUENT_COLUMNS)
    for run in np.flatnonzero(frequent):
        upper, left = (
            np.split(np.arange(start, start + count), range(step, count, step))
            for start, count, step in (
                (row_starts[run], row_counts[run], _MOST_ROWS),
                (column_starts[run], column_counts[run], _MOST_COLUMNS),
            )
        )
        for some, others in product(upper, left):
            yield some[None], others[None]
    # Similar shapes are batched together, so that there is little padding.
    order = np.flatnonzero(~frequent)
    order = order[np.lexsort((row_counts[order], column_counts[order]))[::-1]]
    while len(order):
        few = max(1, views // int(row_counts[order].max() + column_counts[order[0]]))
        some, order = order[:few], order[few:]
        yield _padded(row_starts[some], row_counts[some]), _padded(column_starts[some], column_counts[some])


def _runs(ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct ids of a sorted array, the first position of each, and its number of occurrences."""
    ids, starts, counts = np.unique(ids, return_index=True, return_counts=True)
    return ids, starts, counts


def _padded(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the ranges start to start + count - 1 as rows of one length, padded with -1."""
    steps = np.arange(counts.max())
    return np.where(steps < counts[:, None], starts[:, None] + steps, -1)
