"""Triton kernels for positives: each program follows the runs of some anchors through the other views.

Views are sorted by concept id, so the positives of consecutive anchors are consecutive too: the pairs of a concept are
rectangles along a diagonal. A rare concept is a part of one block of similarities, a frequent one is spread over as
many programs as its anchors fill. Sums are made in float64, and so are similarities between steps of the product:
positives are what saturates, and an error in s_ap is a relative error of the whole term.
"""

import triton
import triton.language as tl
from torch import Tensor

from bali_ds.losses.contrastive.triton_conversions import as_operand, rounded
from bali_ds.losses.contrastive.triton_views import Runs

LOGISTIC, EXPONENTIAL, FARTHEST = 0, 1, 2
"""What is summed: softplus(b - s) and sigmoid(b - s); s and exp(p s + q c + r); the maximum of -c instead of a sum."""
_LOGISTIC, _FARTHEST = tl.constexpr(LOGISTIC), tl.constexpr(FARTHEST)
_LIMITED = 4  # rows of anchors, if the last is the largest cosine
_ANCHORS, _OTHERS, _DEPTH = 64, 64, 64  # of one block of similarities, and of one step of its product
_WARPS = 8  # with fewer, a block of float64 values does not fit the registers


@triton.jit
def _cosines(  # type: ignore[no-untyped-def]
    anchors, others, anchor, other, num_anchors, num_others, width: tl.constexpr, depth: tl.constexpr
):  # fmt: skip
    """Return float64 products; each step of the product is made in float32 and added in float64."""
    along = tl.arange(0, depth)
    left = anchors + tl.minimum(anchor, num_anchors - 1).to(tl.int64)[:, None] * width + along[None, :]
    right = others + tl.minimum(other, num_others - 1).to(tl.int64)[None, :] * width + along[:, None]
    total = tl.zeros((anchor.shape[0], other.shape[0]), tl.float64)
    for _ in range(0, width, depth):
        a, b = as_operand(tl.load(left)), as_operand(tl.load(right))
        total += tl.dot(a, b, input_precision="ieee").to(tl.float64)
        left += depth
        right += depth
    return total


@triton.jit(
    do_not_specialize=[
        "begins", "ends", "partners", "offsets", "limits", "out", "num_anchors", "num_others", "anchor_number",
        "other_number",
    ]
)  # fmt: skip
def _positive_kernel(  # type: ignore[no-untyped-def]
    anchors, others, begins, ends, partners, offsets, limits, scale, out, num_anchors, num_others, anchor_number,
    other_number, width: tl.constexpr, block: tl.constexpr, other_block: tl.constexpr, depth: tl.constexpr,
    terms: tl.constexpr, by_similarity: tl.constexpr, by_cosine: tl.constexpr, constant: tl.constexpr,
    limited: tl.constexpr, with_partners: tl.constexpr, joint: tl.constexpr,
):  # fmt: skip
    """Add the sums over the positives of each anchor to out, float64 [anchors, 2]; or its maximum, [anchors]."""
    anchor = tl.program_id(0) * block + tl.arange(0, block)
    exists = anchor < num_anchors
    begin = tl.load(begins + anchor, exists, other=0) - other_number
    end = tl.load(ends + anchor, exists, other=0) - other_number
    occurs = begin < end
    start = tl.min(tl.where(occurs, begin, 2147483647), 0)
    stop = tl.max(tl.where(occurs, end, 0), 0)
    factor = tl.load(scale)
    first = tl.full((block,), float("-inf") if terms == _FARTHEST else 0.0, tl.float64)
    second = tl.zeros((block,), tl.float64)
    for at in range(start, stop, other_block):
        other = at + tl.arange(0, other_block)
        cosines = _cosines(anchors, others, anchor, other, num_anchors, num_others, width, depth)
        pairs = (other[None, :] >= begin[:, None]) & (other[None, :] < end[:, None])
        if with_partners:
            partner = tl.load(partners + anchor, exists, other=-1)
            pairs = pairs & ((other_number + other)[None, :] == partner[:, None])
        if joint:
            pairs = pairs & ((other_number + other)[None, :] != (anchor_number + anchor)[:, None])
        similarities = cosines * factor
        if terms == _FARTHEST:
            first = tl.maximum(first, tl.max(tl.where(pairs, -cosines, float("-inf")), 1))
        elif terms == _LOGISTIC:
            gaps = tl.load(offsets + anchor, exists, other=0.0)[:, None] - similarities
            tails = tl.exp(-tl.abs(gaps))
            # log(1 + tails) would lose tails that are small beside 1.
            logs = tl.where(tails < 1e-5, tails - tails * tails * 0.5, tl.log(1.0 + tails))
            first += tl.sum(tl.where(pairs, tl.maximum(gaps, 0.0) + logs, 0.0), 1)
            slopes = tl.where(gaps >= 0, 1.0, tails) / (1.0 + tails)
            second += tl.sum(tl.where(pairs, slopes, 0.0), 1)
        else:
            exponentials = tl.exp(by_similarity * similarities + by_cosine * cosines + constant)
            first += tl.sum(tl.where(pairs, similarities, 0.0), 1)
            if limited:
                pairs = pairs & (cosines <= tl.load(limits + anchor, exists, other=0.0)[:, None])
            second += tl.sum(tl.where(pairs, exponentials, 0.0), 1)
    if terms == _FARTHEST:
        into = out + anchor
        tl.store(into, tl.maximum(tl.load(into, exists, other=0.0), first), exists)
    else:
        into = out + 2 * anchor.to(tl.int64)
        tl.store(into, tl.load(into, exists, other=0.0) + first, exists)
        tl.store(into + 1, tl.load(into + 1, exists, other=0.0) + second, exists)


@triton.jit
def _slopes(  # type: ignore[no-untyped-def]
    anchors, view, exists, stride, largest, similarities, cosines, axis: tl.constexpr, logistic: tl.constexpr,
    by_similarity: tl.constexpr, by_cosine: tl.constexpr, constant: tl.constexpr, limited: tl.constexpr,
):  # fmt: skip
    """Return the derivatives by similarities of the terms of anchors, which vary along the other axis."""
    weight = tl.expand_dims(tl.load(anchors + view, exists, other=0.0) / largest, axis)
    offset = tl.expand_dims(tl.load(anchors + stride + view, exists, other=0.0), axis)
    if logistic:
        return weight / (1.0 + tl.exp(similarities - offset))
    terms = weight * tl.exp(by_similarity * similarities + by_cosine * cosines + constant - offset)
    if limited:
        limit = tl.expand_dims(tl.load(anchors + 3 * stride + view, exists, other=0.0), axis)
        terms = tl.where(cosines <= limit, terms, 0.0)
    return terms + tl.expand_dims(tl.load(anchors + 2 * stride + view, exists, other=0.0) / largest, axis)


@triton.jit(
    do_not_specialize=[
        "begins", "ends", "row_partners", "column_partners", "row_anchors", "column_anchors", "row_stride",
        "column_stride", "num_rows", "num_columns", "row_number", "column_number", "out_stride",
    ]
)  # fmt: skip
def _slope_kernel(  # type: ignore[no-untyped-def]
    rows, columns, begins, ends, row_partners, column_partners, row_anchors, column_anchors, largest, scale, out,
    row_stride, column_stride, num_rows, num_columns, row_number, column_number, out_stride, width: tl.constexpr,
    block: tl.constexpr, other_block: tl.constexpr, depth: tl.constexpr, logistic: tl.constexpr,
    by_similarity: tl.constexpr, by_cosine: tl.constexpr, constant: tl.constexpr, limited: tl.constexpr,
    with_partners: tl.constexpr, joint: tl.constexpr,
):  # fmt: skip
    """Write the derivatives by the similarities of positives to out [rows, columns], 0 for other pairs of a concept."""
    row = tl.program_id(0) * block + tl.arange(0, block)
    row_exists = row < num_rows
    begin = tl.maximum(tl.load(begins + row, row_exists, other=0) - column_number, 0)
    end = tl.minimum(tl.load(ends + row, row_exists, other=0) - column_number, num_columns)
    occurs = begin < end
    start = tl.min(tl.where(occurs, begin, 2147483647), 0)
    stop = tl.max(tl.where(occurs, end, 0), 0)
    divisor, factor = tl.load(largest), tl.load(scale)
    for at in range(start, stop, other_block):
        column = at + tl.arange(0, other_block)
        column_exists = column < num_columns
        cosines = _cosines(rows, columns, row, column, num_rows, num_columns, width, depth)
        equal = (column[None, :] >= begin[:, None]) & (column[None, :] < end[:, None])
        for_rows = equal
        for_columns = equal
        if with_partners:
            row_partner = tl.load(row_partners + row, row_exists, other=-1)
            column_partner = tl.load(column_partners + column, column_exists, other=-1)
            for_columns = equal & ((row_number + row)[:, None] == column_partner[None, :])
            for_rows = equal & ((column_number + column)[None, :] == row_partner[:, None])
        if joint:
            for_rows = equal & ((column_number + column)[None, :] != (row_number + row)[:, None])
            for_columns = for_rows
        similarities = cosines * factor
        of_row = _slopes(
            row_anchors, row, row_exists, row_stride, divisor, similarities, cosines, 1, logistic, by_similarity,
            by_cosine, constant, limited,
        )  # fmt: skip
        of_column = _slopes(
            column_anchors, column, column_exists, column_stride, divisor, similarities, cosines, 0, logistic,
            by_similarity, by_cosine, constant, limited,
        )  # fmt: skip
        slopes = (tl.where(for_rows, of_row, 0.0) + tl.where(for_columns, of_column, 0.0)).to(tl.float32)
        into = out + row.to(tl.int64)[:, None] * out_stride + column[None, :]
        tl.store(into, rounded(slopes, out.dtype.element_ty), equal)


def add_positive_sums(
    anchors: Tensor, others: Tensor, runs: Runs, offsets: Tensor | None, limits: Tensor | None, scale: Tensor,
    numbers: tuple[int, int], accumulator: Tensor, terms: int, exponent: tuple[float, float, float] | None,
    *, joint: bool,
) -> None:  # fmt: skip
    """Add the sums over the positives of each anchor to its accumulator, or raise it to their maximum.

    Args:
        anchors: float32 or bfloat16 [m, d], contiguous unit features, d a multiple of 64.
        others: same dtype [n, d].
        runs: where the concepts of anchors occur among others, by the others' numbers.
        offsets: float64 [m], b of `LOGISTIC` terms.
        limits: float64 [m], the largest cosine of positives whose exponential counts; None if all count.
        scale: float64 scalar, the logit scale.
        numbers: of the first anchor and of the first of the others.
        accumulator: float64 [m, 2], or [m] for the maximum.
        terms: what is summed.
        exponent: of `EXPONENTIAL` terms, see `bali_ds.losses.contrastive.formulas.Exponent`.
        joint: whether both are views of one side, where a view is not a positive of itself.
    """
    if len(anchors) and len(others):
        _positive_kernel[(triton.cdiv(len(anchors), _ANCHORS),)](
            anchors, others, runs.begins, runs.ends, runs.partners, offsets, limits, scale, accumulator, len(anchors),
            len(others), *numbers, anchors.shape[1], _ANCHORS, _OTHERS, _DEPTH, terms, *(exponent or (0.0, 0.0, 0.0)),
            limits is not None, runs.partners is not None, joint, num_warps=_WARPS,
        )  # fmt: skip


def write_positive_derivatives(
    rows: Tensor, columns: Tensor, runs: Runs, column_partners: Tensor | None, anchors: tuple[Tensor, Tensor],
    largest: Tensor, scale: Tensor, numbers: tuple[int, int], out: Tensor,
    exponent: tuple[float, float, float] | None, *, joint: bool,
) -> None:  # fmt: skip
    """Write the derivatives of the loss by the similarities of views of one concept, and leave other pairs alone.

    They are 0 if neither is a positive of the other.

    Args:
        rows: float32 or bfloat16 [m, d], contiguous unit features, d a multiple of 64.
        columns: same dtype [n, d].
        runs: where the concepts of rows occur among columns, and the rows' partners, by the columns' numbers.
        column_partners: int32 [n], numbers of rows; None if all views of a concept are positives.
        anchors: float64 [k, m] and [k, n], the fields of `PositiveSlopes`, and the largest cosine of positives that
            count if there is one.
        largest: float64 scalar, divides the result.
        scale: float64 scalar, the logit scale.
        numbers: of the first row and the first column.
        out: float32 or bfloat16 [m, n], with rows that may be apart.
        exponent: see `bali_ds.losses.contrastive.formulas.LossFormula`.
        joint: whether rows and columns are views of one side, where a view is not a positive of itself.
    """
    _slope_kernel[(triton.cdiv(len(rows), _ANCHORS),)](
        rows, columns, runs.begins, runs.ends, runs.partners, column_partners, *anchors, largest, scale, out,
        *(each.stride(0) for each in anchors), len(rows), len(columns), *numbers, out.stride(0), rows.shape[1],
        _ANCHORS, _OTHERS, _DEPTH, exponent is None, *(exponent or (0.0, 0.0, 0.0)), len(anchors[0]) == _LIMITED,
        column_partners is not None, joint, num_warps=_WARPS,
    )  # fmt: skip
