"""Sweeps over the pairs of views that share an id, found by sorting and never by comparing all with all.

Blocks are sorted by id, so the views that have a counterpart in the other block, taken in order, hold their pairs in
rectangles along the diagonal: a strip is a few rows and the range of columns whose ids they share. A frequent
concept is a dense rectangle; a rare one costs the width of a strip. Similarities of positives are computed in
float64, because they are what saturates: an error in s_ap is a relative error of its whole term.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bali_ds.objective.contrastive.views import Block

_HEIGHT, _WIDTH = 32, 8192

# From the similarities of a strip to one or more values a pair, seen from the anchors of a side at some numbers.
Places = slice | Tensor
PairFunction = Callable[[Tensor, int, Places], tuple[Tensor, ...]]


class Strip(NamedTuple):
    """Some rows and columns of a pair of blocks.

    Attributes:
        rows: their positions within their block.
        columns: the same.
        row_numbers: their numbers within their side.
        column_numbers: the same.
        for_rows: bool [rows, columns], where a column is a positive of a row.
        for_columns: where a row is a positive of a column.
        cosines: float64 [rows, columns].
    """

    rows: Places
    columns: Places
    row_numbers: Places
    column_numbers: Places
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
        budget: bytes of cosines that may be kept between sweeps.
        kept: cosines by (side, first row, first column) of the strip's blocks and the strip's number.
    """

    joint: bool
    partners: list[NDArray[np.int64]] | None
    device: torch.device
    resident: bool = True
    budget: int = 1 << 26
    kept: dict[tuple[int, int, int, int], Tensor] = field(default_factory=dict)

    def keep(self, rows: Block, columns: Block) -> None:
        """Compute the cosines of all pairs of two blocks while their features are here, and keep them."""
        for _ in self.strips(rows, columns):
            pass

    def strips(self, rows: Block, columns: Block) -> Iterator[Strip]:
        """Yield what pairs up, strip by strip."""
        for number, (upper, left) in enumerate(_matches(rows.ids, columns.ids)):
            for_rows = for_columns = rows.ids[upper][:, None] == columns.ids[left]
            row_numbers, column_numbers = upper + rows.start, left + columns.start
            if self.joint:
                for_rows = for_columns = for_rows & (row_numbers[:, None] != column_numbers)
            if self.partners is not None:
                for_rows = self.partners[rows.side][row_numbers, None] == column_numbers
                for_columns = self.partners[columns.side][column_numbers] == row_numbers[:, None]
            places = self._places(upper), self._places(left)
            key = (rows.side, rows.start, columns.start, number)
            yield Strip(
                *places,
                self._places(row_numbers),
                self._places(column_numbers),
                torch.from_numpy(for_rows).to(self.device),
                torch.from_numpy(for_columns).to(self.device),
                self._cosines(key, rows, columns, places),
            )

    def _places(self, positions: NDArray[np.int64]) -> Places:
        """Ranges as slices: what they select is not copied."""
        first, last = int(positions[0]), int(positions[-1])
        if last - first + 1 == len(positions):
            return slice(first, last + 1)
        return torch.from_numpy(positions).to(self.device)

    def _cosines(
        self, key: tuple[int, int, int, int], rows: Block, columns: Block, places: tuple[Places, Places]
    ) -> Tensor:
        if key in self.kept:
            return self.kept[key]
        assert rows.features is not None
        assert columns.features is not None
        cosines = rows.features[places[0]].double() @ columns.features[places[1]].double().T
        size = cosines.numel() * cosines.element_size()
        if not self.resident or size <= self.budget:
            self.budget -= size
            self.kept[key] = cosines
        return cosines

    def sums(self, function: PairFunction, rows: Block, columns: Block, into: Tensor, across: Tensor | None) -> None:
        """Add the sums over positives of each value of `function` to `into` [rows, values] and `across`."""
        for strip in self.strips(rows, columns):
            values = function(strip.cosines, rows.side, strip.row_numbers)
            into[strip.rows] += torch.stack([value.where(strip.for_rows, 0.0).sum(1) for value in values], dim=1)
            if across is not None:
                values = function(strip.cosines.T, columns.side, strip.column_numbers)
                sums = [value.where(strip.for_columns.T, 0.0).sum(1) for value in values]
                across[strip.columns] += torch.stack(sums, dim=1)

    def farthest(self, rows: Block, columns: Block, into: Tensor, across: Tensor | None) -> None:
        """Raise `into` [rows] and `across` [columns] to the largest negated cosine of an anchor's positives."""
        for strip in self.strips(rows, columns):
            negated = -strip.cosines
            into[strip.rows] = torch.maximum(into[strip.rows], negated.where(strip.for_rows, -torch.inf).amax(1))
            if across is not None:
                highest = negated.where(strip.for_columns, -torch.inf).amax(0)
                across[strip.columns] = torch.maximum(across[strip.columns], highest)

    def gradients(
        self, function: PairFunction, rows: Block, columns: Block, into: Tensor, across: Tensor | None
    ) -> None:
        """Add derivatives by the rows, divided by the scale, to `into` [rows, d], by the columns to `across`.

        `function` gives one value, the derivative of the loss by the pair's similarity, from its anchor's side.
        """
        assert rows.features is not None
        assert columns.features is not None
        for strip in self.strips(rows, columns):
            (by_row,) = function(strip.cosines, rows.side, strip.row_numbers)
            (by_column,) = function(strip.cosines.T, columns.side, strip.column_numbers)
            slopes = by_row.where(strip.for_rows, 0.0) + by_column.T.where(strip.for_columns, 0.0)
            slopes = slopes.to(into.dtype)
            into[strip.rows] += slopes @ columns.features[strip.columns]
            if across is not None:
                across[strip.columns] += slopes.T @ rows.features[strip.rows]


def _matches(
    row_ids: NDArray[np.int64], column_ids: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield positions of few rows and of the columns that share an id with one of them; both lists are sorted."""
    rows = np.flatnonzero(np.isin(row_ids, column_ids))
    columns = np.flatnonzero(np.isin(column_ids, row_ids))
    low = np.searchsorted(column_ids[columns], row_ids[rows[::_HEIGHT]])
    last = np.append(np.arange(_HEIGHT, len(rows), _HEIGHT), len(rows))[: len(low)] - 1
    high = np.searchsorted(column_ids[columns], row_ids[rows[last]], side="right") if len(rows) else low
    for strip, (first, stop) in enumerate(zip(low, high, strict=True)):
        upper = rows[strip * _HEIGHT : (strip + 1) * _HEIGHT]
        for left in range(first, stop, _WIDTH):
            yield upper, columns[left : min(left + _WIDTH, stop)]
