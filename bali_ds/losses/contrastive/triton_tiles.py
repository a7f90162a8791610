"""The tiles of `Exponential` as Triton kernels: a product of matrices whose epilogue is everything elementwise.

One kernel leaves only the sums of a tile, the other only its derivatives, so that exponentials never reach memory;
the two products with the derivatives are the vendor library's. Features may be float32 or bfloat16, of any width;
products are summed in float32. Partial sums are written per block and added in a fixed order: no atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bali_ds.losses.contrastive.sorted_views import ViewBlock
from bali_ds.losses.contrastive.tiles import Exponential

_ROWS, _COLUMNS, _DEPTH = 64, 64, 32
_WIDENED = triton.knobs.runtime.interpret  # the interpreter multiplies bfloat16 as if it were integers


@triton.jit
def _exponentials(  # type: ignore[no-untyped-def]
    rows, columns, row_ids, column_ids, row_places, column_places, num_rows, num_columns, width, scale, shift,
    depth: tl.constexpr, widened: tl.constexpr,
):  # fmt: skip
    """Return exp(scale * cosine - shift) of one block, 0 between equal ids and beyond the edges."""
    row_exists, column_exists = row_places < num_rows, column_places < num_columns
    products = tl.zeros((row_places.shape[0], column_places.shape[0]), tl.float32)
    for start in range(0, width, depth):
        along = start + tl.arange(0, depth)
        inside = along < width
        left = tl.load(
            rows + row_places[:, None] * width + along[None, :], row_exists[:, None] & inside[None, :], other=0.0
        )
        right = tl.load(
            columns + column_places[:, None] * width + along[None, :],
            column_exists[:, None] & inside[None, :],
            other=0.0,
        )
        if widened:
            left, right = left.to(tl.float32), right.to(tl.float32)
        products = tl.dot(left, tl.trans(right), products, input_precision="ieee")
    different = (
        tl.load(row_ids + row_places, row_exists, other=0)[:, None]
        != tl.load(column_ids + column_places, column_exists, other=0)[None, :]
    )
    counts = different & row_exists[:, None] & column_exists[None, :]
    return tl.where(counts, tl.exp(products * scale - shift), 0.0)


@triton.jit
def _sum_kernel(  # type: ignore[no-untyped-def]
    rows, columns, row_ids, column_ids, row_sums, column_sums, num_rows, num_columns, width, scale, shift,
    height: tl.constexpr, breadth: tl.constexpr, depth: tl.constexpr, widened: tl.constexpr,
):  # fmt: skip
    """Write each row's sum over this block to row_sums [blocks of columns, rows], and the same for columns."""
    block_row, block_column = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    row_places = block_row * height + tl.arange(0, height)
    column_places = block_column * breadth + tl.arange(0, breadth)
    tile = _exponentials(
        rows, columns, row_ids, column_ids, row_places, column_places, num_rows, num_columns, width,
        scale, shift, depth, widened,
    )  # fmt: skip
    tl.store(row_sums + block_column * num_rows + row_places, tl.sum(tile, axis=1), row_places < num_rows)
    tl.store(column_sums + block_row * num_columns + column_places, tl.sum(tile, axis=0), column_places < num_columns)


@triton.jit
def _derivative_kernel(  # type: ignore[no-untyped-def]
    rows, columns, row_ids, column_ids, row_factors, column_factors, out, num_rows, num_columns, width, scale, shift,
    height: tl.constexpr, breadth: tl.constexpr, depth: tl.constexpr, widened: tl.constexpr,
):  # fmt: skip
    """Write exponential * (row factor + column factor) of this block to out [rows, columns]."""
    row_places = tl.program_id(0).to(tl.int64) * height + tl.arange(0, height)
    column_places = tl.program_id(1).to(tl.int64) * breadth + tl.arange(0, breadth)
    tile = _exponentials(
        rows, columns, row_ids, column_ids, row_places, column_places, num_rows, num_columns, width,
        scale, shift, depth, widened,
    )  # fmt: skip
    by_row = tl.load(row_factors + row_places, row_places < num_rows, other=0.0)
    by_column = tl.load(column_factors + column_places, column_places < num_columns, other=0.0)
    tl.store(
        out + row_places[:, None] * num_columns + column_places[None, :],
        tile * (by_row[:, None] + by_column[None, :]),
        (row_places < num_rows)[:, None] & (column_places < num_columns)[None, :],
    )


def tile_sums(
    rows: Tensor, columns: Tensor, row_ids: Tensor, column_ids: Tensor, scale: float, shift: float
) -> tuple[Tensor, Tensor]:
    """Return the sums of exp(scale * cosine - shift) over different ids.

    Args:
        rows: float32 or bfloat16 [m, d], contiguous.
        columns: same dtype [n, d], contiguous.
        row_ids: int64 [m].
        column_ids: int64 [n].
        scale: what cosines are multiplied with.
        shift: what is taken off before the exponential.

    Returns:
        float64 [m] and float64 [n].
    """
    grid = (triton.cdiv(len(rows), _ROWS), triton.cdiv(len(columns), _COLUMNS))
    row_sums = torch.empty(grid[1], len(rows), device=rows.device)
    column_sums = torch.empty(grid[0], len(columns), device=rows.device)
    _sum_kernel[grid](
        rows, columns, row_ids, column_ids, row_sums, column_sums, len(rows), len(columns), rows.shape[1], scale, shift,
        _ROWS, _COLUMNS, _DEPTH, _WIDENED,
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
        rows: as in `tile_sums`, like `columns`, `row_ids`, `column_ids`, `scale` and `shift`.
        columns: [n, d].
        row_ids: [m].
        column_ids: [n].
        row_factors: float32 [m].
        column_factors: float32 [n].
        scale: a number.
        shift: a number.

    Returns:
        float32 [m, n].
    """
    grid = (triton.cdiv(len(rows), _ROWS), triton.cdiv(len(columns), _COLUMNS))
    out = rows.new_empty((len(rows), len(columns)), dtype=torch.float32)
    _derivative_kernel[grid](
        rows, columns, row_ids, column_ids, row_factors, column_factors, out, len(rows), len(columns), rows.shape[1],
        scale, shift, _ROWS, _COLUMNS, _DEPTH, _WIDENED,
    )  # fmt: skip
    return out


class TritonExponential(Exponential):
    """Negatives whose tiles live on a GPU."""

    def sums(self, rows: ViewBlock, columns: ViewBlock, into: Tensor, across: Tensor | None, triangle: bool) -> None:
        """Add the sums of exponentials of each row to `into` [rows] and of each column to `across` [columns]."""
        for upper, left, same in self.tiles.between(rows, columns, triangle):
            by_row, by_column = tile_sums(*_operands(upper, left), self.tiles.scale, self.tiles.shift)
            into[upper.within(rows)] += by_row
            if across is not None and not same:
                across[left.within(columns)] += by_column

    def _derivatives(self, rows: ViewBlock, columns: ViewBlock, _both: bool) -> Tensor:
        factors = self.factors[rows.side][rows.span], self.factors[columns.side][columns.span]
        return tile_derivatives(*_operands(rows, columns), *factors, self.tiles.scale, self.tiles.shift)


def _operands(rows: ViewBlock, columns: ViewBlock) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    assert rows.features is not None
    assert columns.features is not None
    ids = (torch.from_numpy(block.ids).to(rows.features.device) for block in (rows, columns))
    return rows.features, columns.features, *ids  # type: ignore[return-value]
