"""Triton kernels over all pairs of two blocks of views: sums of exponentials, and the derivatives by similarities.

Both compute the similarities by tensor cores in blocks that never leave the chip. What they write is small (a maximum
and a sum for each view and block) or goes into a workspace (derivatives, in the dtype of the features), which cuBLAS
multiplies into gradients. Partial sums are added in a fixed order, without atomics, so results repeat bit for bit.
Exponents are relative to an anchor's own maximum or sum, so any logit scale is exact.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from bali_ds.losses.contrastive.triton_conversions import as_operand, rounded
from bali_ds.losses.contrastive.workspace import Workspace

EXPONENTIAL, MINED, LOGISTIC = 0, 1, 2  # what negatives contribute, see `bali_ds.losses.contrastive.formulas`
_EXPONENTIAL, _MINED, _LOGISTIC = tl.constexpr(EXPONENTIAL), tl.constexpr(MINED), tl.constexpr(LOGISTIC)
_LOG2_E = tl.constexpr(1.4426950408889634)
_LOG_2 = tl.constexpr(0.6931471805599453)
_GROUP = 8  # blocks of rows that share blocks of columns in the second-level cache
_VIEWS, _BLOCKS = 128, 16  # views of one program that adds up partial sums, and blocks added at a time
_ALIGNMENT = 64  # of the rows of derivatives in memory
PRECISION = "tf32x3"  # of products of float32 features: three products of tensor cores for each


class Blocks(NamedTuple):
    """Shape of the block of one program and how the compiler schedules it.

    Attributes:
        rows: of the block.
        columns: of the block.
        depth: of one step of its product; divides the padded width of features.
        warps: of one program.
        stages: of the software pipeline.
        registers: that a thread may use; None leaves it to the compiler.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    registers: int | None = None

    @property
    def options(self) -> dict[str, int | None]:
        """Options of a launch."""
        return {"num_warps": self.warps, "num_stages": self.stages, "maxnreg": self.registers}


SUM_BLOCKS = {torch.bfloat16: Blocks(128, 128, 64, 4, 3), torch.float32: Blocks(64, 128, 32, 4, 3)}
DERIVATIVE_BLOCKS = {torch.bfloat16: Blocks(128, 128, 64, 4, 3), torch.float32: Blocks(64, 128, 32, 4, 3)}


@triton.jit
def _block_position(num_rows, num_columns, height: tl.constexpr, breadth: tl.constexpr, group: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the row and the column of this program's block, in an order that rereads features from the cache."""
    program = tl.program_id(0)
    across, down = tl.cdiv(num_columns, breadth), tl.cdiv(num_rows, height)
    first = program // (group * across) * group
    size = tl.minimum(down - first, group)
    within = program % (group * across)
    return first + within % size, within // size


@triton.jit
def _products(  # type: ignore[no-untyped-def]
    rows, columns, row, column, num_rows, num_columns, width: tl.constexpr, depth: tl.constexpr,
    precision: tl.constexpr,
):  # fmt: skip
    """Return the products of some rows and columns; indices beyond the last stand for the last."""
    along = tl.arange(0, depth)
    left = rows + tl.minimum(row, num_rows - 1).to(tl.int64)[:, None] * width + along[None, :]
    right = columns + tl.minimum(column, num_columns - 1).to(tl.int64)[None, :] * width + along[:, None]
    total = tl.zeros((row.shape[0], column.shape[0]), tl.float32)
    for _ in range(0, width, depth):
        a, b = as_operand(tl.load(left)), as_operand(tl.load(right))
        total = tl.dot(a, b, total, input_precision=precision)
        left += depth
        right += depth
    return total


@triton.jit
def _store_sums(  # type: ignore[no-untyped-def]
    logits, floors, out, plane, view, exists, axis: tl.constexpr, negatives: tl.constexpr
):  # fmt: skip
    """Write the maximum of logits along an axis, the sum of exponentials relative to it and, if mined, their spread."""
    largest = tl.max(logits, axis)
    shift = tl.where(largest == float("-inf"), 0.0, largest)
    gaps = logits - tl.expand_dims(shift, axis)
    values = tl.exp2(gaps)
    if negatives == _MINED:
        counts = logits >= tl.expand_dims(floors, axis)
        values = tl.where(counts, values, 0.0)
        tl.store(out + 2 * plane + view, tl.sum(tl.where(counts, -gaps * values, 0.0), axis), exists)
    tl.store(out + view, largest, exists)
    tl.store(out + plane + view, tl.sum(values, axis), exists)


_VARYING = ("begins", "ends", "num_rows", "num_columns", "column_number")  # see triton_views.py


@triton.jit(do_not_specialize=[*_VARYING, "row_floors", "column_floors"])
def _sum_kernel(  # type: ignore[no-untyped-def]
    rows, columns, begins, ends, row_floors, column_floors, scale, row_sums, column_sums, num_rows, num_columns,
    column_number, width: tl.constexpr, height: tl.constexpr, breadth: tl.constexpr, depth: tl.constexpr,
    group: tl.constexpr, negatives: tl.constexpr, by_column: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    block_row, block_column = _block_position(num_rows, num_columns, height, breadth, group)
    row = block_row * height + tl.arange(0, height)
    column = block_column * breadth + tl.arange(0, breadth)
    total = _products(rows, columns, row, column, num_rows, num_columns, width, depth, precision)
    row_exists, column_exists = row < num_rows, column < num_columns
    begin = tl.load(begins + row, row_exists, other=0)
    end = tl.load(ends + row, row_exists, other=2147483647)  # so that rows beyond the last have no negatives
    number = column_number + column
    counts = ((number[None, :] < begin[:, None]) | (number[None, :] >= end[:, None])) & column_exists[None, :]
    logits = tl.where(counts, total * (tl.load(scale) * _LOG2_E).to(tl.float32), float("-inf"))
    row_floor = begin
    column_floor = column
    if negatives == _MINED:
        row_floor = tl.load(row_floors + row, row_exists, other=float("inf"))
        column_floor = tl.load(column_floors + column, column_exists, other=float("inf"))
    down, across = tl.cdiv(num_rows, height).to(tl.int64), tl.cdiv(num_columns, breadth).to(tl.int64)
    into_rows = row_sums + block_column.to(tl.int64) * num_rows
    _store_sums(logits, row_floor, into_rows, across * num_rows, row, row_exists, 1, negatives)
    if by_column:
        into_columns = column_sums + block_row.to(tl.int64) * num_columns
        _store_sums(logits, column_floor, into_columns, down * num_columns, column, column_exists, 0, negatives)


@triton.jit(do_not_specialize=["accumulator", "num_blocks", "num_views", "first", "num_kept"])
def _fold_kernel(  # type: ignore[no-untyped-def]
    sums, accumulator, num_blocks, num_views, first, num_kept, views: tl.constexpr, blocks: tl.constexpr,
    negatives: tl.constexpr,
):  # fmt: skip
    """Add the partial sums of each view, in the order of the blocks, to its accumulator."""
    kept = tl.program_id(0) * views + tl.arange(0, views)
    exists = kept < num_kept
    plane = num_blocks.to(tl.int64) * num_views
    largest = tl.full((views,), float("-inf"), tl.float32)
    total = tl.zeros((views,), tl.float32)
    spread = tl.zeros((views,), tl.float32)
    for start in range(0, num_blocks, blocks):
        block = start + tl.arange(0, blocks)
        inside = (block < num_blocks)[:, None] & exists[None, :]
        at = sums + block.to(tl.int64)[:, None] * num_views + (first + kept)[None, :]
        maxima = tl.load(at, inside, other=float("-inf"))
        parts = tl.load(at + plane, inside, other=0.0)
        higher = tl.maximum(largest, tl.max(maxima, 0))
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        before, weights = tl.exp2(largest - shift), tl.exp2(maxima - shift[None, :])
        if negatives == _MINED:
            # The spread is the sum of e^(x - m) (m - x); raising m by h adds h times the sum.
            parts_spread = tl.load(at + 2 * plane, inside, other=0.0)
            raised = tl.where(maxima == float("-inf"), 0.0, shift[None, :] - maxima)
            spread = before * (spread + total * tl.where(largest == float("-inf"), 0.0, shift - largest))
            spread += tl.sum(weights * (parts_spread + parts * raised), 0)
        total = before * total + tl.sum(weights * parts, 0)
        largest = higher
    log_2 = tl.full((1,), _LOG_2, tl.float64)
    peak = largest.to(tl.float64) * log_2
    if negatives == _MINED:
        into = accumulator + 3 * (first + kept).to(tl.int64)
        old = tl.load(into, exists, other=float("-inf"))
        empty = old == float("-inf")
        old_total = tl.where(empty, 0.0, tl.load(into + 1, exists, other=0.0))
        old_spread = tl.where(empty, 0.0, tl.load(into + 2, exists, other=0.0))
        higher = tl.maximum(old, peak)
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        by_old, by_new = tl.exp(old - shift), tl.exp(peak - shift)
        wide = total.to(tl.float64)
        old_spread += old_total * tl.where(empty, 0.0, shift - old)
        new_spread = spread.to(tl.float64) * log_2 + wide * tl.where(peak == float("-inf"), 0.0, shift - peak)
        tl.store(into, higher, exists)
        tl.store(into + 1, by_old * old_total + by_new * wide, exists)
        tl.store(into + 2, by_old * old_spread + by_new * new_spread, exists)
    else:
        into = accumulator + (first + kept)
        old = tl.load(into, exists, other=float("-inf"))
        new = tl.where(total > 0, peak + tl.log(total.to(tl.float64)), float("-inf"))
        higher = tl.maximum(old, new)
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        tl.store(into, tl.log(tl.exp(old - shift) + tl.exp(new - shift)) + higher, exists)


@triton.jit
def _log1p(value):  # type: ignore[no-untyped-def]
    """Return log(1 + value) of float32 values from 0 to 1, exact to a few units also where they are small."""
    series = value * (1.0 - value * (0.5 - value * (1.0 / 3 - value * (0.25 - value * 0.2))))
    return tl.where(value < 0.04, series, tl.log(1.0 + value))


@triton.jit(
    do_not_specialize=[*_VARYING, "row_factors", "column_factors", "row_floors", "column_floors", "both"]
)  # fmt: skip
def _derivative_kernel(  # type: ignore[no-untyped-def]
    rows, columns, begins, ends, row_factors, column_factors, row_floors, column_floors, scale, bias, out, totals,
    num_rows, num_columns, column_number, stride, both, width: tl.constexpr, height: tl.constexpr,
    breadth: tl.constexpr, depth: tl.constexpr, group: tl.constexpr, negatives: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """Write the derivatives by the similarities of one block; for logistic negatives also the block's sums."""
    block_row, block_column = _block_position(num_rows, num_columns, height, breadth, group)
    row = block_row * height + tl.arange(0, height)
    column = block_column * breadth + tl.arange(0, breadth)
    total = _products(rows, columns, row, column, num_rows, num_columns, width, depth, precision)
    row_exists, column_exists = row < num_rows, column < num_columns
    begin = tl.load(begins + row, row_exists, other=0)
    end = tl.load(ends + row, row_exists, other=2147483647)
    number = column_number + column
    counts = (number[None, :] < begin[:, None]) | (number[None, :] >= end[:, None])
    # Rows and columns beyond the last have a factor of 0, or an exponent of minus infinity.
    beyond: tl.constexpr = 0.0 if negatives == _LOGISTIC else float("inf")
    by_row = tl.load(row_factors + row, row_exists, other=beyond)[:, None]
    by_column = tl.load(column_factors + column, column_exists, other=beyond)[None, :]
    if negatives == _LOGISTIC:
        logits = total * tl.load(scale).to(tl.float32) + tl.load(bias).to(tl.float32)
        slopes = tl.where(counts, tl.sigmoid(logits), 0.0)
        derivatives = slopes * (by_row + by_column)
        # Where only rows accumulate, another rank processes the columns as rows and adds their terms.
        counted = tl.where(column_exists[None, :], by_row, 0.0) + tl.where(row_exists[:, None], by_column, 0.0) * both
        losses = tl.where(counts, tl.maximum(logits, 0.0) + _log1p(tl.exp(-tl.abs(logits))), 0.0)
        program, programs = tl.program_id(0), tl.num_programs(0)
        tl.store(totals + program, tl.sum(tl.sum(losses * counted, 1), 0))
        tl.store(totals + programs + program, tl.sum(tl.sum(slopes * counted, 1), 0))
    else:
        logits = total * (tl.load(scale) * _LOG2_E).to(tl.float32)
        of_row, of_column = tl.exp2(logits - by_row), tl.exp2(logits - by_column)
        if negatives == _MINED:
            row_floor = tl.load(row_floors + row, row_exists, other=float("inf"))
            column_floor = tl.load(column_floors + column, column_exists, other=float("inf"))
            of_row = tl.where(logits >= row_floor[:, None], of_row, 0.0)
            of_column = tl.where(logits >= column_floor[None, :], of_column, 0.0)
        derivatives = tl.where(counts, of_row + of_column, 0.0)
    into = out + row.to(tl.int64)[:, None] * stride + column[None, :]
    tl.store(into, rounded(derivatives, out.dtype.element_ty), row_exists[:, None] & column_exists[None, :])


def add_negative_sums(
    rows: Tensor, columns: Tensor, begins: Tensor, ends: Tensor, scale: Tensor, column_number: int,
    row_accumulator: Tensor, column_accumulator: Tensor | None, skipped: int, workspace: Workspace,
    floors: tuple[Tensor, Tensor] | None = None,
) -> None:  # fmt: skip
    """Add the sums of exp(s) over negatives to the accumulators of rows and columns.

    An accumulator is float64 [views], the log of the sum; with `floors` float64 [views, 3]: the largest s = m, and over
    logits that are not below the view's floor the sum of exp(s - m) and that of exp(s - m) * (m - s). It starts as
    minus infinity.

    Args:
        rows: float32 or bfloat16 [m, d], contiguous unit features, d a multiple of the depth of `SUM_BLOCKS`.
        columns: same dtype [n, d].
        begins: int32 [m], the number of the first column that has the concept of each row.
        ends: int32 [m], one past the last.
        scale: float64 scalar, the logit scale.
        column_number: the number of the first column.
        row_accumulator: of the rows.
        column_accumulator: of the columns, or None.
        skipped: number of leading columns whose accumulators stay as they are.
        workspace: for partial sums.
        floors: float32 [m] and [n], in units of log(2).
    """
    blocks, negatives = SUM_BLOCKS[rows.dtype], EXPONENTIAL if floors is None else MINED
    down, across = triton.cdiv(len(rows), blocks.rows), triton.cdiv(len(columns), blocks.columns)
    planes = 2 if floors is None else 3
    row_sums = workspace.get("row sums", (planes, across, len(rows)), torch.float32)
    column_sums = workspace.get("column sums", (planes, down, len(columns)), torch.float32)
    row_floors, column_floors = floors or (None, None)
    _sum_kernel[(down * across,)](
        rows, columns, begins, ends, row_floors, column_floors, scale, row_sums, column_sums, len(rows), len(columns),
        column_number, rows.shape[1], blocks.rows, blocks.columns, blocks.depth, _GROUP, negatives,
        column_accumulator is not None, PRECISION, **blocks.options,
    )  # fmt: skip
    for sums, accumulator, first in ((row_sums, row_accumulator, 0), (column_sums, column_accumulator, skipped)):
        _, num_blocks, views = sums.shape
        if accumulator is not None and views > first:
            _fold_kernel[(triton.cdiv(views - first, _VIEWS),)](
                sums, accumulator, num_blocks, views, first, views - first, _VIEWS, _BLOCKS, negatives
            )


def merge_mined_sums(one: Tensor, other: Tensor) -> Tensor:
    """Return the sums over both sets of negatives, see `add_negative_sums`; float64 [views, 3]."""
    largest = torch.maximum(one[:, 0], other[:, 0])
    total = spread = torch.zeros_like(largest)
    for sums in (one, other):
        below = largest - sums[:, 0]
        known = below.isfinite()  # else there are no negatives in this set, or in both
        weight = torch.exp(-below)
        total = total + (weight * sums[:, 1]).where(known, 0.0)
        spread = spread + (weight * (sums[:, 2] + sums[:, 1] * below)).where(known, 0.0)
    return torch.stack([largest, total, spread], dim=1)


def negative_derivatives(
    rows: Tensor, columns: Tensor, begins: Tensor, ends: Tensor, factors: tuple[Tensor, Tensor], scale: Tensor,
    bias: Tensor, column_number: int, negatives: int, workspace: Workspace,
    floors: tuple[Tensor, Tensor] | None = None, *, both: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Return the derivatives of the loss by the similarities of rows and columns, 0 between views of one concept.

    Args:
        rows: float32 or bfloat16 [m, d], contiguous unit features, d a multiple of the depth of `DERIVATIVE_BLOCKS`.
        columns: same dtype [n, d].
        begins: see `add_negative_sums`.
        ends: see `add_negative_sums`.
        factors: float32 [m] and [n]: a of the derivatives sigmoid(s_ij) * (a_i + a_j) of logistic negatives; else b of
            exp(s_ij) * (exp(-b_i) + exp(-b_j)), in units of log(2).
        scale: float64 scalar, the logit scale.
        bias: float64 scalar, added to similarities if negatives are logistic.
        column_number: the number of the first column.
        negatives: `EXPONENTIAL`, `MINED` or `LOGISTIC`.
        workspace: holds the result until the next call.
        floors: if mined float32 [m] and [n], the smallest logit that counts, in units of log(2).
        both: whether the sums count the terms of columns too, not those of rows alone.

    Returns:
        Same dtype as rows [m, n]; and for logistic negatives float32 [2, blocks], the sums of softplus(s_ij + bias) *
        (a_i + a_j) and of their derivatives by the bias.
    """
    blocks = DERIVATIVE_BLOCKS[rows.dtype]
    down, across = triton.cdiv(len(rows), blocks.rows), triton.cdiv(len(columns), blocks.columns)
    stride = triton.cdiv(len(columns), _ALIGNMENT) * _ALIGNMENT
    out = workspace.get("derivatives", (len(rows), stride), rows.dtype)
    totals = workspace.get("totals", (2, down * across), torch.float32) if negatives == LOGISTIC else None
    _derivative_kernel[(down * across,)](
        rows, columns, begins, ends, *factors, *(floors or (None, None)), scale, bias, out, totals, len(rows),
        len(columns), column_number, stride, int(both), rows.shape[1], blocks.rows, blocks.columns, blocks.depth,
        _GROUP, negatives, PRECISION, **blocks.options,
    )  # fmt: skip
    return out[:, : len(columns)], totals


def add_product(into: Tensor, left: Tensor, right: Tensor) -> None:
    """Add the product of two matrices of one dtype to a float32 matrix; bfloat16 is multiplied as it is on a GPU."""
    if left.dtype == into.dtype:
        into.addmm_(left, right)
    elif into.is_cuda:
        torch.addmm(into, left, right, out_dtype=into.dtype, out=into)
    else:
        into.addmm_(left.to(into.dtype), right.to(into.dtype))
