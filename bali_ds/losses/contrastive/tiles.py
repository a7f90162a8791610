"""Passes over negatives, tile by tile, without ever holding more than one tile of the similarity matrix.

A tile serves its rows and its columns, as each view is an anchor and a negative of others. With e_ij = exp(s_ij -
shift), z_i = shift + log sum_j e_ij and c_i the derivative of the loss by z_i, the derivative by s_ij is
e_ij * (a_i + a_j), with the factors a_i = c_i * exp(shift - z_i). So one exponential for each element serves both
directions, in the pass that sums and in the pass that computes gradients.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bali_ds.losses.contrastive.sorted_views import BlockPair, ViewBlock
from bali_ds.losses.contrastive.workspace import Workspace

HEADROOM = 50.0  # log of the largest exponential: float32 overflows at 88, and a sum of 2**40 of them still fits
FLOOR = -55.0  # log of a sum of exponentials above which terms that underflowed (below exp(-87)) do not matter


@dataclass
class Tiles:
    """Computes tiles of similarities between two blocks.

    Attributes:
        scale: the logit scale.
        shift: subtracted from scaled similarities.
        size: rows and columns of a tile.
        dtype: of matrix products; features are converted to it.
        precision: dtype of all elementwise arithmetic.
        device: where the features are.
    """

    scale: float
    shift: float
    size: int
    dtype: torch.dtype
    precision: torch.dtype
    device: torch.device

    def __post_init__(self) -> None:
        self.workspace = Workspace(self.device)

    def between(
        self, rows: ViewBlock, columns: ViewBlock, symmetric: bool
    ) -> Iterator[tuple[ViewBlock, ViewBlock, bool]]:
        """Yield (rows, columns, whether they are the same views) of each tile.

        Args:
            rows: a block.
            columns: a block.
            symmetric: whether they are the same views; then tiles below the diagonal are skipped.
        """
        for first in range(0, len(rows), self.size):
            upper = rows.part(first, first + self.size)
            for second in range(first if symmetric else 0, len(columns), self.size):
                yield upper, columns.part(second, second + self.size), symmetric and first == second

    def similarities(self, rows: ViewBlock, columns: ViewBlock) -> Tensor:
        """Return scale * cosine - shift, and -inf between views of one concept; the next tile overwrites it."""
        buffer = self.workspace.get("tile", (len(rows), len(columns)), self.dtype)
        left, right = rows.features_as(self.dtype), columns.features_as(self.dtype)
        torch.addmm(buffer, left, right.T, beta=0, alpha=self.scale, out=buffer)
        tile = buffer.to(self.precision)
        if self.shift:
            tile.sub_(self.shift)
        _mask_equal_concepts(tile, rows.concept_ids.numpy(), columns.concept_ids.numpy())
        return tile

    def exponentials(self, rows: ViewBlock, columns: ViewBlock) -> Tensor:
        """Return the exponentials of `similarities`, which the caller may modify."""
        return self.similarities(rows, columns).exp_()


def _mask_equal_concepts(tile: Tensor, row_ids: np.ndarray, column_ids: np.ndarray) -> None:
    """Fill in -inf where ids are equal. Both arrays are sorted, so only the overlap of their ranges is compared."""
    low, high = max(row_ids[0], column_ids[0]), min(row_ids[-1], column_ids[-1])
    if low > high:
        return
    rows, columns = (
        slice(int(np.searchsorted(ids, low)), int(np.searchsorted(ids, high, side="right")))
        for ids in (row_ids, column_ids)
    )
    equal = torch.from_numpy(row_ids[rows, None] == column_ids[columns]).to(tile.device)
    tile[rows, columns].masked_fill_(equal, -torch.inf)


class ExponentialNegatives:
    """Negatives of which an anchor sees the sum of exp(s), computed by torch.

    The passes are `bali_ds.losses.contrastive.communication.BlockFunction`s.

    Attributes:
        factors: for each side float [num_views], the a_i of the module's docstring, in the tiles' precision; set
            between the two passes.
    """

    def __init__(self, tiles: Tiles) -> None:
        self.tiles = tiles
        self.factors: list[Tensor] = []

    def sums(self, pair: BlockPair) -> None:
        """Add each anchor's sum of exponentials to the accumulators, float64 [rows] and [columns]."""
        self._reduce(pair, lambda tile, dim, _: tile.sum(dim), torch.add)

    def _reduce(
        self, pair: BlockPair, reduction: Callable[[Tensor, int, ViewBlock], Tensor], combine: Callable[..., Tensor]
    ) -> None:
        rows, columns, row_accumulator, column_accumulator, symmetric = pair
        for upper, left, same in self.tiles.between(rows, columns, symmetric):
            tile = self.tiles.exponentials(upper, left)
            into = row_accumulator[upper.within(rows)]
            combine(into, reduction(tile, 1, upper).to(into.dtype), out=into)
            if column_accumulator is not None and not same:
                into = column_accumulator[left.within(columns)]
                combine(into, reduction(tile, 0, left).to(into.dtype), out=into)

    def gradients(self, pair: BlockPair) -> None:
        """Add the gradients by the features, divided by the logit scale, to the accumulators, float [views, d]."""
        rows, columns, row_accumulator, column_accumulator, symmetric = pair
        for upper, left, same in self.tiles.between(rows, columns, symmetric):
            tile = self._derivatives(upper, left, column_accumulator is not None)
            row_accumulator[upper.within(rows)].addmm_(tile, left.features_as(tile.dtype))
            if column_accumulator is not None and not same:
                column_accumulator[left.within(columns)].addmm_(tile.T, upper.features_as(tile.dtype))

    def _derivatives(self, rows: ViewBlock, columns: ViewBlock, _both: bool) -> Tensor:
        tile = self.tiles.exponentials(rows, columns)
        buffer = self.tiles.workspace.get("factors", (len(rows), len(columns)), tile.dtype)
        by_row, by_column = self._factors(rows, columns)
        return tile.mul_(torch.add(by_row, by_column, out=buffer)).to(self.tiles.dtype)

    def _factors(self, rows: ViewBlock, columns: ViewBlock) -> tuple[Tensor, Tensor]:
        """Return the factors of rows [rows, 1] and of columns [columns]."""
        return self.factors[rows.side][rows.span, None], self.factors[columns.side][columns.span]


class MinedNegatives(ExponentialNegatives):
    """Negatives of which only those near enough to the anchor count, with the entropy of the softmax over them.

    Attributes:
        floors: for each side float [num_views]; exponentials below an anchor's floor do not count for it.
    """

    def __init__(self, tiles: Tiles) -> None:
        super().__init__(tiles)
        self.floors: list[Tensor] = []

    def maxima(self, pair: BlockPair) -> None:
        """Raise the accumulators, float64 [rows] and [columns], to each anchor's largest exponential."""
        self._reduce(pair, lambda tile, dim, _: tile.amax(dim), torch.maximum)

    def sums(self, pair: BlockPair) -> None:
        """Add each anchor's sums of e and of e * log(e), e the exponentials, to the accumulators, [anchors, 2]."""
        self._reduce(pair, self._entropy_sums, torch.add)

    def _entropy_sums(self, tile: Tensor, dim: int, anchors: ViewBlock) -> Tensor:
        # In float64: the entropy is the small difference of two large logarithms if one negative dominates.
        counted = (tile * self._counts(tile, dim, anchors)).double()
        return torch.stack([counted.sum(dim), torch.xlogy(counted, counted).sum(dim)], dim=-1)

    def _counts(self, tile: Tensor, dim: int, anchors: ViewBlock) -> Tensor:
        floor = self.floors[anchors.side][anchors.span]
        return tile >= (floor[:, None] if dim == 1 else floor)

    def _derivatives(self, rows: ViewBlock, columns: ViewBlock, _both: bool) -> Tensor:
        tile = self.tiles.exponentials(rows, columns)
        by_row, by_column = self._factors(rows, columns)
        factors = by_row * self._counts(tile, 1, rows) + by_column * self._counts(tile, 0, columns)
        return tile.mul_(factors).to(self.tiles.dtype)


class LogisticNegatives(ExponentialNegatives):
    """Negatives that each contribute softplus(s + bias); the gradient pass alone is needed.

    Attributes:
        loss: float64 scalar, the sum of softplus(s_ij + bias) * (a_i + a_j) over the pairs seen by `gradients`.
        bias_gradient: float64 scalar, its derivative by the bias.
    """

    def __init__(self, tiles: Tiles) -> None:
        super().__init__(tiles)
        self.loss = torch.zeros((), dtype=torch.float64, device=tiles.device)
        self.bias_gradient = torch.zeros((), dtype=torch.float64, device=tiles.device)

    def _derivatives(self, rows: ViewBlock, columns: ViewBlock, both: bool) -> Tensor:
        tile = self.tiles.similarities(rows, columns)
        by_row, by_column = self._factors(rows, columns)
        # Without an accumulator for the columns, another rank processes them as rows and adds their terms.
        counted = by_row + by_column if both else by_row.expand_as(tile)
        slopes = tile.sigmoid()
        self.loss += (F.softplus(tile) * counted).sum(dtype=torch.float64)
        self.bias_gradient += (slopes * counted).sum(dtype=torch.float64)
        return (slopes * (by_row + by_column)).to(self.tiles.dtype)
