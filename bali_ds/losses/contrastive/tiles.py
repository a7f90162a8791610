"""Sweeps over tiles of similarities between views of different ids; nothing larger than a tile ever exists.

A tile serves its rows and its columns, as both are anchors and each other's negatives. With e_ij = exp(s_ij - shift),
z_i = shift + log of the sum over j of e_ij and c_i the derivative of the loss by z_i, the derivative by s_ij is
e_ij * (a_i + a_j), a_i = c_i * exp(shift - z_i): one exponential an element, for both directions, in either pass.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bali_ds.losses.contrastive.sorted_views import ViewBlock
from bali_ds.losses.contrastive.workspace import Scratch

HEADROOM = 50.0  # log of the largest exponential: float32 ends at 88, and a sum of 2**40 of them still fits
FLOOR = -55.0  # log of the smallest sum of exponentials that lost terms (below exp(-87)) cannot have touched


@dataclass
class Tiles:
    """Tiles of similarities between two blocks.

    Attributes:
        scale: what cosines are multiplied with.
        shift: what is taken off before the exponential.
        size: rows and columns of a tile.
        dtype: of products of matrices; features are widened to it.
        precision: dtype of everything elementwise.
        device: where the features are.
        scratch: memory of the tile.
    """

    scale: float
    shift: float
    size: int
    dtype: torch.dtype
    precision: torch.dtype
    device: torch.device

    def __post_init__(self) -> None:
        self.scratch = Scratch(self.device)

    def between(
        self, rows: ViewBlock, columns: ViewBlock, triangle: bool
    ) -> Iterator[tuple[ViewBlock, ViewBlock, bool]]:
        """Yield (rows, columns, whether they are the same views); of a triangle the upper half."""
        for first in range(0, len(rows), self.size):
            upper = rows.part(first, first + self.size)
            for second in range(first if triangle else 0, len(columns), self.size):
                yield upper, columns.part(second, second + self.size), triangle and first == second

    def similarities(self, rows: ViewBlock, columns: ViewBlock) -> Tensor:
        """Return scale * cosine - shift, and -inf between views of one id."""
        into = self.scratch.get("tile", (len(rows), len(columns)), self.dtype)
        torch.addmm(into, rows.wide(self.dtype), columns.wide(self.dtype).T, beta=0, alpha=self.scale, out=into)
        tile = into.to(self.precision)
        if self.shift:
            tile.sub_(self.shift)
        _mask_equal_ids(tile, rows.ids, columns.ids)
        return tile

    def exponentials(self, rows: ViewBlock, columns: ViewBlock) -> Tensor:
        """Return exp(similarities), the caller's to overwrite."""
        return self.similarities(rows, columns).exp_()


def _mask_equal_ids(tile: Tensor, row_ids: np.ndarray, column_ids: np.ndarray) -> None:
    """Both lists are sorted, so equal ids can only stand in the rectangle where the two ranges overlap."""
    low, high = max(row_ids[0], column_ids[0]), min(row_ids[-1], column_ids[-1])
    if low > high:
        return
    rows, columns = (
        slice(int(np.searchsorted(ids, low)), int(np.searchsorted(ids, high, side="right")))
        for ids in (row_ids, column_ids)
    )
    equal = torch.from_numpy(row_ids[rows, None] == column_ids[columns]).to(tile.device)
    tile[rows, columns].masked_fill_(equal, -torch.inf)


class Exponential:
    """Negatives that count by exp(s): their sums, their part of the gradient.

    Attributes:
        factors: per side float [total], the a_i of the module's docstring, in the tiles' precision.
    """

    def __init__(self, tiles: Tiles) -> None:
        self.tiles = tiles
        self.factors: list[Tensor] = []

    def sums(self, rows: ViewBlock, columns: ViewBlock, into: Tensor, across: Tensor | None, triangle: bool) -> None:
        """Add the sums of exponentials of each row to `into` [rows] and of each column to `across` [columns]."""
        self._reduce(rows, columns, into, across, triangle, lambda tile, dim, _: tile.sum(dim), torch.add)

    def _reduce(
        self,
        rows: ViewBlock,
        columns: ViewBlock,
        into: Tensor,
        across: Tensor | None,
        triangle: bool,
        summary: Callable[[Tensor, int, ViewBlock], Tensor],
        combine: Callable[..., Tensor],
    ) -> None:
        for upper, left, same in self.tiles.between(rows, columns, triangle):
            tile = self.tiles.exponentials(upper, left)
            here = into[upper.within(rows)]
            combine(here, summary(tile, 1, upper).to(into.dtype), out=here)
            if across is not None and not same:
                there = across[left.within(columns)]
                combine(there, summary(tile, 0, left).to(across.dtype), out=there)

    def gradients(
        self, rows: ViewBlock, columns: ViewBlock, into: Tensor, across: Tensor | None, triangle: bool
    ) -> None:
        """Add derivatives by the rows, divided by the scale, to `into` [rows, d], by the columns to `across`."""
        for upper, left, same in self.tiles.between(rows, columns, triangle):
            tile = self._derivatives(upper, left, across is not None)
            into[upper.within(rows)].addmm_(tile, left.wide(tile.dtype))
            if across is not None and not same:
                across[left.within(columns)].addmm_(tile.T, upper.wide(tile.dtype))

    def _derivatives(self, rows: ViewBlock, columns: ViewBlock, _both: bool) -> Tensor:
        tile = self.tiles.exponentials(rows, columns)
        memory = self.tiles.scratch.get("factors", (len(rows), len(columns)), tile.dtype)
        by_row, by_column = self.factors[rows.side][rows.span, None], self.factors[columns.side][columns.span]
        return tile.mul_(torch.add(by_row, by_column, out=memory)).to(self.tiles.dtype)


class Mined(Exponential):
    """Negatives of which only those near enough count, with the entropy of the softmax over them.

    Attributes:
        floors: per side float [total], exponentials below an anchor's floor do not count for it.
    """

    def __init__(self, tiles: Tiles) -> None:
        super().__init__(tiles)
        self.floors: list[Tensor] = []

    def maxima(self, rows: ViewBlock, columns: ViewBlock, into: Tensor, across: Tensor | None, triangle: bool) -> None:
        """Raise `into` [rows] and `across` [columns] to the largest exponential of each row and column."""
        self._reduce(rows, columns, into, across, triangle, lambda tile, dim, _: tile.amax(dim), torch.maximum)

    def sums(self, rows: ViewBlock, columns: ViewBlock, into: Tensor, across: Tensor | None, triangle: bool) -> None:
        """Add the sums of e and of e * log(e), e the exponentials, to `into` [rows, 2] and `across` [columns, 2]."""
        self._reduce(rows, columns, into, across, triangle, self._entropy_sums, torch.add)

    def _entropy_sums(self, tile: Tensor, dim: int, anchors: ViewBlock) -> Tensor:
        # In float64: the entropy is the small difference of two large logarithms where one negative outdoes the rest.
        counted = (tile * self._counts(tile, dim, anchors)).double()
        return torch.stack([counted.sum(dim), torch.xlogy(counted, counted).sum(dim)], dim=-1)

    def _counts(self, tile: Tensor, dim: int, anchors: ViewBlock) -> Tensor:
        floor = self.floors[anchors.side][anchors.span]
        return tile >= (floor[:, None] if dim == 1 else floor)

    def _derivatives(self, rows: ViewBlock, columns: ViewBlock, _both: bool) -> Tensor:
        tile = self.tiles.exponentials(rows, columns)
        by_row, by_column = self.factors[rows.side][rows.span, None], self.factors[columns.side][columns.span]
        factors = by_row * self._counts(tile, 1, rows) + by_column * self._counts(tile, 0, columns)
        return tile.mul_(factors).to(self.tiles.dtype)


class Logistic(Exponential):
    """Negatives that each count by softplus(s + bias); there is nothing to sum before the gradient.

    Attributes:
        loss: float64, the sum of softplus(s_ij + bias) * (a_i + a_j) over what `gradients` has seen.
        bias_gradient: float64, its derivative by the bias.
    """

    def __init__(self, tiles: Tiles) -> None:
        super().__init__(tiles)
        self.loss = torch.zeros((), dtype=torch.float64, device=tiles.device)
        self.bias_gradient = torch.zeros((), dtype=torch.float64, device=tiles.device)

    def _derivatives(self, rows: ViewBlock, columns: ViewBlock, both: bool) -> Tensor:
        tile = self.tiles.similarities(rows, columns)
        by_row, by_column = self.factors[rows.side][rows.span, None], self.factors[columns.side][columns.span]
        # Where only the rows are this rank's, the columns' own part is counted by the rank that has them as rows.
        counted = by_row + by_column if both else by_row.expand_as(tile)
        slopes = tile.sigmoid()
        self.loss += (F.softplus(tile) * counted).sum(dtype=torch.float64)
        self.bias_gradient += (slopes * counted).sum(dtype=torch.float64)
        return (slopes * (by_row + by_column)).to(self.tiles.dtype)
