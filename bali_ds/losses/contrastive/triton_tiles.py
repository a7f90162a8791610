"""Negatives computed by Triton kernels for GPUs: matrix products with all elementwise arithmetic in the epilogue.

One kernel writes only the sums of a tile, the other only its derivatives, so exponentials are never written to memory;
the products with the derivatives are torch's. Features may be float32 or bfloat16, of any width; products accumulate
in float32. Partial sums are written per block and added in a fixed order, without atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bali_ds.losses.contrastive.sorted_views import ViewBlock
from bali_ds.losses.contrastive.tiles import ExponentialNegatives

_ROWS, _COLUMNS, _DEPTH = 64, 64, 32  # of the block of one program, and of one step of its product
_TO_FLOAT32 = triton.knobs.runtime.interpret  # the interpreter multiplies bfloat16 as if it were integers


@triton.jit
def _exponentials(  # type: ignore[no-untyped-def]
    rows, columns, row_ids, column_ids, row_indices, column_indices, num_rows, num_columns, width, scale, shift,
    depth: tl.constexpr, to_float32: tl.constexpr,
):  # fmt: skip
    """Return exp(scale * cosine - shift) of one block, 0 between equal ids and outside of the matrix."""
    row_exists, column_exists = row_indices < num_rows, column_indices < num_columns
    products = tl.zeros((row_indices.shape[0], column_indices.shape[0]), tl.float32)
    for start in range(0, width, depth):
        along = start + tl.arange(0, depth)
        inside = along < width
        left = tl.load(
            rows + row_indices[:, None] * width + along[None, :], row_exists[:, None] & inside[None, :], other=0.0
        )
        right = tl.load(
            columns + column_indices[:, None] * width + along[None, :],
            column_exists[:, None] & inside[None, :],
            other=0.0,
        )
        if to_float32:
            left, right = left.to(tl.float32), right.to(tl.float32)
        products = tl.dot(left, tl.trans(right), products, input_precision="ieee")
    different = (
        tl.load(row_ids + row_indices, row_exists, other=0)[:, None]
        != tl.load(column_ids + column_indices, column_exists, other=0)[None, :]
    )
    counts = different & row_exists[:, None] & column_exists[None, :]
    return tl.where(counts, tl.exp(products * scale - shift), 0.0)


@triton.jit
def _sum_kernel(  # type: ignore[no-untyped-def]
    rows, columns, row_ids, column_ids, row_sums, column_sums, num_rows, num_columns, width, scale, shift,
    height: tl.constexpr, breadth: tl.constexpr, depth: tl.constexpr, to_float32: tl.constexpr,
):  # fmt: skip
    """Write each row's sum over this block to row_sums [blocks of columns, rows], and the same for columns."""
    block_row, block_column = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    row_indices = block_row * height + tl.arange(0, height)
    column_indices = block_column * breadth + tl.arange(0, breadth)
    tile = _exponentials(
        rows, columns, row_ids, column_ids, row_indices, column_indices, num_rows, num_columns, width,
        scale, shift, depth, to_float32,
    )  # fmt: skip
    tl.store(row_sums + block_column * num_rows + row_indices, tl.sum(tile, axis=1), row_indices < num_rows)
    tl.store(column_sums + block_row * num_columns + column_indices, tl.sum(tile, axis=0), column_indices < num_columns)


@triton.jit
def _derivative_kernel(  # type: ignore[no-untyped-def]
    rows, columns, row_ids, column_ids, row_factors, column_factors, out, num_rows, num_columns, width, scale, shift,
    height: tl.constexpr, breadth: tl.constexpr, depth: tl.constexpr, to_float32: tl.constexpr,
):  # fmt: skip
    """Write exponential * (row factor + column factor) of this block to out [rows, columns]."""
    row_indices = tl.program_id(0).to(tl.int64) * height + tl.arange(0, height)
    column_indices = tl.program_id(1).to(tl.int64) * breadth + tl.arange(0, breadth)
    tile = _exponentials(
        rows, columns, row_ids, column_ids, row_indices, column_indices, num_rows, num_columns, width,
        scale, shift, depth, to_float32,
    )  # fmt: skip
    by_row = tl.load(row_factors + row_indices, row_indices < num_rows, other=0.0)
    by_column = tl.load(column_factors + column_indices, column_indices < num_columns, other=0.0)
    tl.store(
        out + row_indices[:, None] * num_columns + column_indices[None, :],
        tile * (by_row[:, None] + by_column[None, :]),
        (row_indices < num_rows)[:, None] & (column_indices < num_columns)[None, :],
    )


def tile_sums(
    rows: Tensor, columns: Tensor, row_ids: Tensor, column_ids: Tensor, scale: float, shift: float
) -> tuple[Tensor, Tensor]:
    """Return the sums of exp(scale * cosine - shift) over pairs of different ids, by row and by column.

    Args:
        rows: float32 or bfloat16 [m, d], contiguous.
        columns: same dtype [n, d], contiguous.
        row_ids: int64 [m].
        column_ids: int64 [n].
        scale: the logit scale.
        shift: subtracted before the exponential.

    Returns:
        float64 [m] and float64 [n].
    """
    grid = (triton.cdiv(len(rows), _ROWS), triton.cdiv(len(columns), _COLUMNS))
    row_sums = torch.empty(grid[1], len(rows), device=rows.device)
    column_sums = torch.empty(grid[0], len(columns), device=rows.device)
    _sum_kernel[grid](
        rows, columns, row_ids, column_ids, row_sums, column_sums, len(rows), len(columns), rows.shape[1], scale, shift,
        _ROWS, _COLUMNS, _DEPTH, _TO_FLOAT32,
    )  # fmt: skip
    return row_sums.sum(0, dtype=torch.float64), column_sums.sum(0, dtype=torch.float64)


def tile_derivatives(
    rows: Tensor,
    columns: Tensor,
    row_ids: Tensor,
    column_ids: Tensor,
    row_factors: Tensor,
    column_factors: Tensor,
    scale: float,
    shift: float,
) -> Tensor:
    """Return exp(scale * cosine - shift) * (row factor + column factor), 0 between equal ids.

    Args:
        rows: float32 or bfloat16 [m, d], contiguous.
        columns: same dtype [n, d], contiguous.
        row_ids: int64 [m].
        column_ids: int64 [n].
        row_factors: float32 [m].
        column_factors: float32 [n].
        scale: the logit scale.
        shift: subtracted before the exponential.

    Returns:
        float32 [m, n].
    """
    grid = (triton.cdiv(len(rows), _ROWS), triton.cdiv(len(columns), _COLUMNS))
    out = rows.new_empty((len(rows), len(columns)), dtype=torch.float32)
    _derivative_kernel[grid](
        rows, columns, row_ids, column_ids, row_factors, column_factors, out, len(rows), len(columns), rows.shape[1],
        scale, shift, _ROWS, _COLUMNS, _DEPTH, _TO_FLOAT32,
    )  # fmt: skip
    return out


class TritonNegatives(ExponentialNegatives):
    """Negatives in float32, from float32 or bfloat16 features on a GPU."""

    def sums(
        self,
        rows: ViewBlock,
        columns: ViewBlock,
        row_accumulator: Tensor,
        column_accumulator: Tensor | None,
        symmetric: bool,
    ) -> None:
        """Add each anchor's sum of exponentials to the accumulators, float64 [rows] and [columns]."""
        for upper, left, same in self.tiles.between(rows, columns, symmetric):
            by_row, by_column = tile_sums(*_operands(upper, left), self.tiles.scale, self.tiles.shift)
            row_accumulator[upper.within(rows)] += by_row
            if column_accumulator is not None and not same:
                column_accumulator[left.within(columns)] += by_column

    def _derivatives(self, rows: ViewBlock, columns: ViewBlock, _both: bool) -> Tensor:
        factors = self.factors[rows.side][rows.span], self.factors[columns.side][columns.span]
        return tile_derivatives(*_operands(rows, columns), *factors, self.tiles.scale, self.tiles.shift)


def _operands(rows: ViewBlock, columns: ViewBlock) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    assert rows.features is not None
    assert columns.features is not None
    ids = (torch.from_numpy(block.concept_ids).to(rows.features.device) for block in (rows, columns))
    return rows.features, columns.features, *ids  # type: ignore[return-value]
