"""Sweeps over the pairs of views that share an id, found by sorting and never by comparing all with all.

Blocks are sorted by id, so the pairs of an id stand in a rectangle. Rectangles of rare ids are padded to one shape
and taken many at a time, as the numbers are small and the calls are not; that of an id that is frequent on either
side is cut into pieces. Similarities of positives are computed in float64, because they are what saturates: an error in
s_ap is a relative error of its whole term.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bali_ds.losses.contrastive.sorted_views import ViewBlock
from bali_ds.losses.contrastive.workspace import Scratch

_HEIGHT, _WIDTH = 16, 32  # rows and columns from which on an id is frequent
_TALL, _WIDE = 256, 2048  # of one piece of a frequent id
_BYTES = 1 << 22  # of the features in float64 that are taken at a time

# From similarities [..., anchors, positives], a side and the anchors' numbers in it to one or more values a pair.
PairFunction = Callable[[Tensor, int, Tensor], tuple[Tensor, ...]]


class Rectangles(NamedTuple):
    """Some rectangles of pairs of two blocks; no row and no column is in more than one of them.

    Attributes:
        rows: int64 [rectangles, rows], positions within the block; what pads is in no pair.
        columns: int64 [rectangles, columns].
        row_numbers: the rows' numbers within their side.
        column_numbers: the same.
        for_rows: bool [rectangles, rows, columns], where a column is a positive of a row.
        for_columns: bool [rectangles, columns, rows], where a row is a positive of a column.
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
    """The pairs between blocks.

    Attributes:
        joint: whether both blocks are of one side, so that a view meets itself.
        partners: per side int64 [total], the one positive on the other side that counts, -1 for none; None: all do.
        device: where the features are.
        resident: whether features are at hand in every sweep; if not, all cosines are kept.
        budget: bytes that may be kept between sweeps.
        kept: by side, first row, rows, first column and columns of two blocks, their rectangles.
    """

    joint: bool
    partners: list[NDArray[np.int64]] | None
    device: torch.device
    resident: bool = True
    budget: int = 1 << 26
    kept: dict[tuple[int, ...], list[Rectangles]] = field(default_factory=dict)

    def keep(self, rows: ViewBlock, columns: ViewBlock) -> None:
        """Compute the cosines of all pairs of two blocks while their features are here, and keep them."""
        for _ in self.rectangles(rows, columns):
            pass

    def rectangles(self, rows: ViewBlock, columns: ViewBlock) -> Iterator[Rectangles]:
        """Yield what pairs up."""
        key = (rows.side, rows.start, len(rows), columns.start, len(columns))
        kept = self.kept.setdefault(key, [])
        yield from kept
        scratch = Scratch(self.device)
        width = 1 if rows.features is None else rows.features.shape[1]
        for number, (upper, left) in enumerate(_rectangles(rows.ids, columns.ids, _BYTES // (8 * width))):
            if number < len(kept):
                continue
            made = self._made(rows, columns, upper, left, scratch)
            size = sum(each.nbytes for each in made)
            # Only what comes first is kept, so that a number tells what is there.
            if len(kept) == number and (not self.resident or size <= self.budget):
                self.budget -= size
                kept.append(made)
            yield made

    def _made(
        self, rows: ViewBlock, columns: ViewBlock, upper: NDArray[np.int64], left: NDArray[np.int64], scratch: Scratch
    ) -> Rectangles:
        assert rows.features is not None
        assert columns.features is not None
        real = (upper >= 0)[:, :, None] & (left >= 0)[:, None, :]
        upper, left = upper.clip(min=0), left.clip(min=0)
        row_numbers, column_numbers = upper + rows.start, left + columns.start
        for_rows = for_columns = real & (rows.ids[upper][:, :, None] == columns.ids[left][:, None, :])
        if self.joint:
            for_rows = for_columns = for_rows & (row_numbers[:, :, None] != column_numbers[:, None, :])
        if self.partners is not None:
            for_rows = real & (self.partners[rows.side][row_numbers][:, :, None] == column_numbers[:, None, :])
            for_columns = real & (self.partners[columns.side][column_numbers][:, None, :] == row_numbers[:, :, None])
        everything = upper, left, row_numbers, column_numbers, for_rows, for_columns.transpose(0, 2, 1)
        here, there, *others = (torch.from_numpy(each).to(self.device) for each in everything)
        exact = _exact("rows", rows.features, here, scratch)
        cosines = exact @ _exact("columns", columns.features, there, scratch).mT
        numbers, pairs = others[:2], others[2:]
        return Rectangles(here, there, numbers[0], numbers[1], pairs[0], pairs[1], cosines)

    def sums(
        self, function: PairFunction, rows: ViewBlock, columns: ViewBlock, into: Tensor, across: Tensor | None
    ) -> None:
        """Add the sums over positives of each value of `function` to `into` [rows, values] and `across`."""

        def add(owed: Tensor, anchors: Tensor, values: tuple[Tensor, ...], pairs: Tensor) -> None:
            sums = torch.stack([value.where(pairs, 0.0).sum(-1) for value in values], dim=-1)
            owed.index_add_(0, anchors.flatten(), sums.flatten(0, 1))

        for each in self.rectangles(rows, columns):
            add(into, each.rows, function(each.cosines, rows.side, each.row_numbers), each.for_rows)
            if across is not None:
                values = function(each.cosines.mT, columns.side, each.column_numbers)
                add(across, each.columns, values, each.for_columns)

    def farthest(self, rows: ViewBlock, columns: ViewBlock, into: Tensor, across: Tensor | None) -> None:
        """Raise `into` [rows] and `across` [columns] to the largest negated cosine of an anchor's positives."""

        def lift(owed: Tensor, anchors: Tensor, cosines: Tensor, pairs: Tensor) -> None:
            highest = (-cosines).where(pairs, -torch.inf).amax(-1)
            owed.scatter_reduce_(0, anchors.flatten(), highest.flatten(), "amax")

        for each in self.rectangles(rows, columns):
            lift(into, each.rows, each.cosines, each.for_rows)
            if across is not None:
                lift(across, each.columns, each.cosines.mT, each.for_columns)

    def gradients(
        self, function: PairFunction, rows: ViewBlock, columns: ViewBlock, into: Tensor, across: Tensor | None
    ) -> None:
        """Add derivatives by the rows, divided by the scale, to `into` [rows, d], by the columns to `across`.

        `function` gives one value, the derivative of the loss by the pair's similarity, from its anchor's side.
        """
        assert rows.features is not None
        assert columns.features is not None
        for each in self.rectangles(rows, columns):
            (by_row,) = function(each.cosines, rows.side, each.row_numbers)
            (by_column,) = function(each.cosines.mT, columns.side, each.column_numbers)
            slopes = by_row.where(each.for_rows, 0.0) + by_column.where(each.for_columns, 0.0).mT
            slopes = slopes.to(into.dtype)
            # Padding adds zeros to views that are in pairs of their own, in no other rectangle: no order to depend on.
            # The features have no names, lest those of one side still live while those of the other are taken.
            into.index_add_(
                0, each.rows.flatten(), (slopes @ columns.features[each.columns].to(slopes.dtype)).flatten(0, 1)
            )
            if across is not None:
                across.index_add_(
                    0, each.columns.flatten(), (slopes.mT @ rows.features[each.rows].to(slopes.dtype)).flatten(0, 1)
                )


def _exact(use: str, features: Tensor, places: Tensor, scratch: Scratch) -> Tensor:
    """Return float64 [*places.shape, d], the features at some places."""
    shape = (*places.shape, features.shape[1])
    chosen = scratch.get(f"{use} as they are", (places.numel(), features.shape[1]), features.dtype)
    torch.index_select(features, 0, places.flatten(), out=chosen)
    return scratch.get(use, shape, torch.float64).copy_(chosen.view(shape))


def _rectangles(
    row_ids: NDArray[np.int64], column_ids: NDArray[np.int64], views: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield positions of rows [rectangles, rows] and columns [rectangles, columns], -1 where there is none.

    Args:
        row_ids: sorted.
        column_ids: sorted.
        views: how many rows and columns to yield at a time, unless one rectangle has more.
    """
    (ids, *rows), (others, *columns) = _runs(row_ids), _runs(column_ids)
    _, first, second = np.intersect1d(ids, others, assume_unique=True, return_indices=True)
    (row_starts, row_counts), (column_starts, column_counts) = (
        [each[shared] for each in runs] for runs, shared in ((rows, first), (columns, second))
    )
    frequent = (row_counts >= _HEIGHT) | (column_counts >= _WIDTH)
    for run in np.flatnonzero(frequent):
        upper, left = (
            np.split(np.arange(start, start + count), range(step, count, step))
            for start, count, step in (
                (row_starts[run], row_counts[run], _TALL),
                (column_starts[run], column_counts[run], _WIDE),
            )
        )
        for some, others in product(upper, left):
            yield some[None], others[None]
    # Alike shapes follow each other, so that little is padded.
    order = np.flatnonzero(~frequent)
    order = order[np.lexsort((row_counts[order], column_counts[order]))[::-1]]
    while len(order):
        few = max(1, views // int(row_counts[order].max() + column_counts[order[0]]))
        some, order = order[:few], order[few:]
        yield _padded(row_starts[some], row_counts[some]), _padded(column_starts[some], column_counts[some])


def _runs(ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct ids of a sorted list, where each begins, and how many there are of it."""
    ids, starts, counts = np.unique(ids, return_index=True, return_counts=True)
    return ids, starts, counts


def _padded(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return ranges of positions as rows of one length, ended by -1."""
    steps = np.arange(counts.max())
    return np.where(steps < counts[:, None], starts[:, None] + steps, -1)
