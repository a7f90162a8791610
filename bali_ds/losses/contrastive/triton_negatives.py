"""Triton kernels over all pairs of two blocks of views: sums of exponentials, and the derivatives by similarities.

Both compute the similarities by tensor cores in blocks that never leave the chip. What they write is small (a maximum
and a sum for each view and block) or goes into a workspace (derivatives, in the dtype of the features), which cuBLAS
multiplies into gradients. Partial sums are added in a fixed order, without atomics, so results repeat bit for bit.
Exponents are relative to an anchor's own maximum or sum where the logit scale is large, so any scale is exact.

Blocks of one set of views against itself are symmetric: those below the diagonal are skipped, and the others count for
both. The diagonal is made of squares as large as the longer edge of a block, so each block is on one side of it.
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
# Up to this scale, in units of log(2), exp(s - scale) of all similarities is a normal float32: one exponential serves a
# row and a column.
_COMMON_SHIFT = tl.constexpr(50.0)
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


SYMMETRIC_ROWS = 128
"""A multiple of the edges of all blocks."""
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
def _right_of_diagonal(block_row, block_column, height: tl.constexpr, breadth: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return how many squares a block is right of the diagonal: 0 on it, negative below it."""
    edge: tl.constexpr = height if height > breadth else breadth
    return block_column * breadth // edge - block_row * height // edge


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
def _mask_positives(  # type: ignore[no-untyped-def]
    total, begins, ends, row, column, first, num_rows, num_columns, column_number
):  # fmt: skip
    """Return products with minus infinity for views of one concept, and for rows and columns beyond the last."""
    begin = tl.load(begins + row, row < num_rows, other=0)
    end = tl.load(ends + row, row < num_rows, other=2147483647)
    number = column_number + column
    beyond = first + column.shape[0]
    occurs = tl.max(((begin < column_number + beyond) & (end > column_number + first)).to(tl.int32), 0) > 0
    if occurs | (beyond > num_columns):  # few blocks
        negative = (number[None, :] < begin[:, None]) | (number[None, :] >= end[:, None])
        total = tl.where(negative & (column < num_columns)[None, :], total, float("-inf"))
    return total


@triton.jit
def _store_sums(  # type: ignore[no-untyped-def]
    logits, floors, out, plane, exists, axis: tl.constexpr, negatives: tl.constexpr
):  # fmt: skip
    """Write the maximum of logits along an axis, the sum of exponentials relative to it and, if mined, their spread."""
    largest = tl.max(logits, axis)
    shift = tl.where(largest == float("-inf"), 0.0, largest)
    gaps = logits - tl.expand_dims(shift, axis)
    values = tl.exp2(gaps)
    if negatives == _MINED:
        counts = logits >= tl.expand_dims(floors, axis)
        values = tl.where(counts, values, 0.0)
        tl.store(out + 2 * plane, tl.sum(tl.where(counts, -gaps * values, 0.0), axis), exists)
    tl.store(out, largest, exists)
    tl.store(out + plane, tl.sum(values, axis), exists)


_VARYING = ("begins", "ends", "num_rows", "num_columns", "column_number")  # see triton_views.py


@triton.jit(do_not_specialize=[*_VARYING, "row_floors", "column_floors"])
def _sum_kernel(  # type: ignore[no-untyped-def]
    rows, columns, begins, ends, row_floors, column_floors, scale, row_sums, column_sums, num_rows, num_columns,
    column_number, width: tl.constexpr, height: tl.constexpr, breadth: tl.constexpr, depth: tl.constexpr,
    group: tl.constexpr, negatives: tl.constexpr, by_column: tl.constexpr, symmetric: tl.constexpr,
    precision: tl.constexpr,
):  # fmt: skip
    block_row, block_column = _block_position(num_rows, num_columns, height, breadth, group)
    row = block_row * height + tl.arange(0, height)
    first = block_column * breadth
    column = first + tl.arange(0, breadth)
    row_exists, column_exists = row < num_rows, column < num_columns
    if symmetric:
        beyond = _right_of_diagonal(block_row, block_column, height, breadth)
        if beyond < 0:
            return
        column_exists = column < tl.where(beyond > 0, num_columns, 0)  # rows alone count the pairs of a square
    total = _products(rows, columns, row, column, num_rows, num_columns, width, depth, precision)
    total = _mask_positives(total, begins, ends, row, column, first, num_rows, num_columns, column_number)
    factor = (tl.load(scale) * _LOG2_E).to(tl.float32)
    down, across = tl.cdiv(num_rows, height).to(tl.int64), tl.cdiv(num_columns, breadth).to(tl.int64)
    row_plane, column_plane = across * num_rows, down * num_columns
    into_rows = row_sums + block_column.to(tl.int64) * num_rows + row
    into_columns = column_sums + block_row.to(tl.int64) * num_columns + column
    if negatives == _MINED:
        row_floor = tl.load(row_floors + row, row_exists, other=float("inf"))
        column_floor = tl.load(column_floors + column, column_exists, other=float("inf"))
        _store_sums(total * factor, row_floor, into_rows, row_plane, row_exists, 1, negatives)
        if by_column:
            _store_sums(total * factor, column_floor, into_columns, column_plane, column_exists, 0, negatives)
    elif factor <= _COMMON_SHIFT:
        values = tl.exp2(total * factor - factor)
        tl.store(into_rows, tl.full((height,), 0.0, tl.float32) + factor, row_exists)
        tl.store(into_rows + row_plane, tl.sum(values, 1), row_exists)
        if by_column:
            tl.store(into_columns, tl.full((breadth,), 0.0, tl.float32) + factor, column_exists)
            tl.store(into_columns + column_plane, tl.sum(values, 0), column_exists)
    else:
        _store_sums(total * factor, row, into_rows, row_plane, row_exists, 1, negatives)
        if by_column:
            _store_sums(total * factor, column, into_columns, column_plane, column_exists, 0, negatives)


@triton.jit(do_not_specialize=["accumulator", "num_blocks", "num_views"])
def _fold_kernel(  # type: ignore[no-untyped-def]
    sums, accumulator, num_blocks, num_views, views: tl.constexpr, blocks: tl.constexpr, negatives: tl.constexpr,
    size: tl.constexpr, edge: tl.constexpr, symmetric: tl.constexpr, of_columns: tl.constexpr,
):  # fmt: skip
    """Add the partial sums of each view, in the order of the blocks of some size, to its accumulator."""
    view = tl.program_id(0) * views + tl.arange(0, views)
    exists = view < num_views
    plane = num_blocks.to(tl.int64) * num_views
    largest = tl.full((views,), float("-inf"), tl.float32)
    total = tl.zeros((views,), tl.float32)
    spread = tl.zeros((views,), tl.float32)
    for start in range(0, num_blocks, blocks):
        block = start + tl.arange(0, blocks)
        inside = (block < num_blocks)[:, None] & exists[None, :]
        if symmetric:
            square, own = (block * size // edge)[:, None], (view // edge)[None, :]
            inside = inside & (square < own if of_columns else square >= own)
        at = sums + block.to(tl.int64)[:, None] * num_views + view[None, :]
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
        into = accumulator + 3 * view.to(tl.int64)
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
        into = accumulator + view
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
    breadth: tl.constexpr, depth: tl.constexpr, group: tl.constexpr, negatives: tl.constexpr,
    symmetric: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """Write the derivatives by the similarities of one block; for logistic negatives also the block's sums."""
    block_row, block_column = _block_position(num_rows, num_columns, height, breadth, group)
    row = block_row * height + tl.arange(0, height)
    first = block_column * breadth
    column = first + tl.arange(0, breadth)
    row_exists, column_exists = row < num_rows, column < num_columns
    if symmetric:
        beyond = _right_of_diagonal(block_row, block_column, height, breadth)
        if beyond < 0:
            return
    total = _products(rows, columns, row, column, num_rows, num_columns, width, depth, precision)
    if negatives == _LOGISTIC:
        by_row = tl.load(row_factors + row, row_exists, other=0.0)[:, None]
        by_column = tl.load(column_factors + column, column_exists, other=0.0)[None, :]
        total = _mask_positives(total, begins, ends, row, column, first, num_rows, num_columns, column_number)
        logits = total * tl.load(scale).to(tl.float32) + tl.load(bias).to(tl.float32)
        slopes = tl.sigmoid(logits)
        derivatives = slopes * (by_row + by_column)
        # Where only rows accumulate, another rank processes the columns as rows and adds their terms.
        counted = tl.where(column_exists[None, :], by_row, 0.0) + tl.where(row_exists[:, None], by_column, 0.0) * both
        losses = tl.maximum(logits, 0.0) + _log1p(tl.exp(-tl.abs(logits)))
        program, programs = tl.program_id(0), tl.num_programs(0)
        tl.store(totals + program, tl.sum(tl.sum(losses * counted, 1), 0))
        tl.store(totals + programs + program, tl.sum(tl.sum(slopes * counted, 1), 0))
    else:
        by_row = tl.load(row_factors + row, row_exists, other=float("-inf"))[:, None]
        by_column = tl.load(column_factors + column, column_exists, other=float("-inf"))[None, :]
        factor = (tl.load(scale) * _LOG2_E).to(tl.float32)
        if negatives == _MINED:
            logits = total * factor
            row_floor = tl.load(row_floors + row, row_exists, other=float("inf"))[:, None]
            column_floor = tl.load(column_floors + column, column_exists, other=float("inf"))[None, :]
            derivatives = tl.where(logits >= row_floor, tl.exp2(logits + by_row), 0.0)
            derivatives += tl.where(logits >= column_floor, tl.exp2(logits + by_column), 0.0)
        elif factor <= _COMMON_SHIFT:
            derivatives = tl.exp2(total * factor - factor) * (tl.exp2(by_row + factor) + tl.exp2(by_column + factor))
        else:
            derivatives = tl.exp2(total * factor + by_row) + tl.exp2(total * factor + by_column)
    values = rounded(derivatives, out.dtype.element_ty)
    # Padding is written too: a mask of a known alignment leaves the stores wide.
    down, across = tl.arange(0, height), tl.arange(0, breadth)
    into = out + (block_row * height).to(tl.int64) * stride + first
    tl.store(
        into + (down[:, None] * stride + across[None, :]), values, row_exists[:, None] & (column < stride)[None, :]
    )
    if symmetric:  # noqa: SIM102 - the compiler decides this one
        if (beyond > 0) & (first < num_rows):  # all rows of the block exist
            mirrored = out + first.to(tl.int64) * stride + block_row * height
            within = across[:, None] * stride + down[None, :]
            tl.store(mirrored + within, tl.trans(values), (column < num_rows)[:, None])


def derivative_blocks(dtype: torch.dtype, negatives: int) -> Blocks:
    """Return the blocks of derivatives; those of logistic negatives need twice the registers besides the products."""
    blocks = DERIVATIVE_BLOCKS[dtype]
    return blocks._replace(warps=2 * blocks.warps) if negatives == LOGISTIC else blocks


def add_negative_sums(
    rows: Tensor, columns: Tensor, begins: Tensor, ends: Tensor, scale: Tensor, column_number: int,
    row_accumulator: Tensor, column_accumulator: Tensor | None, workspace: Workspace,
    floors: tuple[Tensor, Tensor] | None = None, *, symmetric: bool = False,
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
        workspace: for partial sums.
        floors: float32 [m] and [n], in units of log(2).
        symmetric: whether the first m columns are the rows, with the same accumulators, so that each pair is computed
            once; m is n or a multiple of `SYMMETRIC_ROWS`.
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
        column_accumulator is not None, symmetric, PRECISION, **blocks.options,
    )  # fmt: skip
    for sums, accumulator, size in (
        (row_sums, row_accumulator, blocks.columns), (column_sums, column_accumulator, blocks.rows),
    ):  # fmt: skip
        _, num_blocks, views = sums.shape
        if accumulator is not None:
            _fold_kernel[(triton.cdiv(views, _VIEWS),)](
                sums, accumulator, num_blocks, views, _VIEWS, _BLOCKS, negatives, size,
                max(blocks.rows, blocks.columns), symmetric, sums is column_sums,
            )  # fmt: skip


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
    floors: tuple[Tensor, Tensor] | None = None, *, both: bool, symmetric: bool = False,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Return the derivatives of the loss by the similarities of rows and columns, as if all were negatives.

    Those of positives are for `triton_positives.write_positive_derivatives` to overwrite: a mask of each value would
    cost more than the few of them.

    Args:
        rows: float32 or bfloat16 [m, d], contiguous unit features, d a multiple of the depth of `DERIVATIVE_BLOCKS`.
        columns: same dtype [n, d].
        begins: see `add_negative_sums`; for logistic negatives, whose sums are without positives.
        ends: the same.
        factors: float32 [m] and [n]: a of the derivatives sigmoid(s_ij) * (a_i + a_j) of logistic negatives; else b of
            exp(s_ij) * (exp(b_i) + exp(b_j)), in units of log(2).
        scale: float64 scalar, the logit scale.
        bias: float64 scalar, added to similarities if negatives are logistic.
        column_number: the number of the first column.
        negatives: `EXPONENTIAL`, `MINED` or `LOGISTIC`.
        workspace: holds the result until the next call.
        floors: if mined float32 [m] and [n], the smallest logit that counts, in units of log(2).
        both: whether the sums count the terms of columns too, not those of rows alone.
        symmetric: see `add_negative_sums`; not for logistic negatives.

    Returns:
        Same dtype as rows [m, n]; and for logistic negatives float32 [2, blocks], the sums of softplus(s_ij + bias) *
        (a_i + a_j) and of their derivatives by the bias.
    """
    blocks = derivative_blocks(rows.dtype, negatives)
    down, across = triton.cdiv(len(rows), blocks.rows), triton.cdiv(len(columns), blocks.columns)
    stride = triton.cdiv(len(columns), _ALIGNMENT) * _ALIGNMENT
    out = workspace.get("derivatives", (len(rows), stride), rows.dtype)
    totals = workspace.get("totals", (2, down * across), torch.float32) if negatives == LOGISTIC else None
    _derivative_kernel[(down * across,)](
        rows, columns, begins, ends, *factors, *(floors or (None, None)), scale, bias, out, totals, len(rows),
        len(columns), column_number, stride, int(both), rows.shape[1], blocks.rows, blocks.columns, blocks.depth,
        _GROUP, negatives, symmetric, PRECISION, **blocks.options,
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
