"""Triton kernels for a transformer layer: what follows its matrix products, each in one pass over memory.

A gradient by a bias is a sum over all tokens. Programs add up the part of their own tokens beside their other work, in
an order that depends on the shapes alone, and torch adds the parts of all programs.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bali_ds.model.dropout_mask import dropout_factors
from bali_ds.model.fused_shapes import NormGradients

_ROWS = 2  # tokens that a program reads at a time, whole rows
_COLUMN_ROWS, _COLUMNS = 8, 512  # tokens and features that a program reads at a time where rows are wide
_PROGRAMS_PER_PROCESSOR = 4


@triton.jit
def _rows_of(values, rows, columns, count, width):  # type: ignore[no-untyped-def]
    """Return float32 [rows, columns] of a matrix, 0 outside."""
    places = rows.to(tl.int64)[:, None] * width + columns[None, :]
    return tl.load(values + places, (rows < count)[:, None] & (columns < width)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _store_rows(out, values, rows, columns, count, width):  # type: ignore[no-untyped-def]
    places = rows.to(tl.int64)[:, None] * width + columns[None, :]
    tl.store(out + places, values, (rows < count)[:, None] & (columns < width)[None, :])


@triton.jit
def _normalized(values, columns, width, epsilon):  # type: ignore[no-untyped-def]
    """Return rows minus their means, divided by their standard deviations, and one over these."""
    inside = (columns < width)[None, :]
    centered = tl.where(inside, values - (tl.sum(values, axis=1) / width)[:, None], 0.0)
    inverse = tl.rsqrt(tl.sum(centered * centered, axis=1) / width + epsilon)[:, None]
    return centered * inverse, inverse


@triton.jit
def _residual_norm_kernel(  # type: ignore[no-untyped-def]
    update, residual, weight, bias, seeds, total, out, count, width, epsilon, dropout,
    block: tl.constexpr, padded_width: tl.constexpr, drops: tl.constexpr,
):  # fmt: skip
    """Write residual + dropout(update) and its layer norm, for some rows."""
    rows, columns = tl.program_id(0) * block + tl.arange(0, block), tl.arange(0, padded_width)
    added = _rows_of(update, rows, columns, count, width)
    if drops:
        added *= dropout_factors(seeds, rows[:, None] * width + columns[None, :], dropout)
    # rounded first: the backward pass reads the rounded sum
    rounded = (added + _rows_of(residual, rows, columns, count, width)).to(total.dtype.element_ty)
    _store_rows(total, rounded, rows, columns, count, width)
    normalized, _ = _normalized(rounded.to(tl.float32), columns, width, epsilon)
    scale = tl.load(weight + columns, columns < width, other=0.0).to(tl.float32)
    shift = tl.load(bias + columns, columns < width, other=0.0).to(tl.float32)
    _store_rows(out, normalized * scale[None, :] + shift[None, :], rows, columns, count, width)


@triton.jit
def _residual_norm_backward_kernel(  # type: ignore[no-untyped-def]
    gradient, total, weight, seeds, by_residual, by_update, sums, count, width, epsilon, dropout, rows_of_program,
    block: tl.constexpr, padded_width: tl.constexpr, drops: tl.constexpr,
):  # fmt: skip
    """Write the gradients by residual and update, and a program's sums of those by weight, bias and update."""
    columns = tl.arange(0, padded_width)
    scale = tl.load(weight + columns, columns < width, other=0.0).to(tl.float32)[None, :]
    by_weight = tl.zeros((block, padded_width), tl.float32)
    by_bias = tl.zeros((block, padded_width), tl.float32)
    updates = tl.zeros((block, padded_width), tl.float32)
    first = tl.program_id(0) * rows_of_program
    for begin in range(first, tl.minimum(first + rows_of_program, count), block):
        rows = begin + tl.arange(0, block)
        upstream = _rows_of(gradient, rows, columns, count, width)
        normalized, inverse = _normalized(_rows_of(total, rows, columns, count, width), columns, width, epsilon)
        by_normalized = upstream * scale
        along = tl.sum(by_normalized * normalized, axis=1)[:, None] / width
        mean = tl.sum(by_normalized, axis=1)[:, None] / width
        by_total = (by_normalized - mean - normalized * along) * inverse
        _store_rows(by_residual, by_total, rows, columns, count, width)
        by_weight += upstream * normalized
        by_bias += upstream
        if drops:
            by_total *= dropout_factors(seeds, rows[:, None] * width + columns[None, :], dropout)
            _store_rows(by_update, by_total, rows, columns, count, width)
        updates += by_total
    own = sums + tl.program_id(0) * 3 * width + columns
    tl.store(own, tl.sum(by_weight, axis=0), columns < width)
    tl.store(own + width, tl.sum(by_bias, axis=0), columns < width)
    tl.store(own + 2 * width, tl.sum(updates, axis=0), columns < width)


@triton.jit
def _column_sums_kernel(  # type: ignore[no-untyped-def]
    gradient, before, sums, count, width, rows_of_program,
    block: tl.constexpr, column_block: tl.constexpr, gelu: tl.constexpr,
):  # fmt: skip
    """Write a program's column sums of a gradient; with `gelu` multiply the gradient by GELU's derivative first."""
    columns = tl.program_id(0) * column_block + tl.arange(0, column_block)
    own = tl.zeros((block, column_block), tl.float32)
    first = tl.program_id(1) * rows_of_program
    for begin in range(first, tl.minimum(first + rows_of_program, count), block):
        rows = begin + tl.arange(0, block)
        values = _rows_of(gradient, rows, columns, count, width)
        if gelu:
            inputs = _rows_of(before, rows, columns, count, width)
            density = tl.exp(-0.5 * inputs * inputs) * 0.3989422804014327  # 1 / sqrt(2 pi)
            values *= 0.5 * (1 + tl.erf(inputs * 0.7071067811865476)) + inputs * density
            _store_rows(gradient, values, rows, columns, count, width)
        own += values
    tl.store(sums + tl.program_id(1) * width + columns, tl.sum(own, axis=0), columns < width)


def residual_norm(
    update: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, seed: Tensor, epsilon: float, dropout: float
) -> tuple[Tensor, Tensor]:
    """Return the sum residual + dropout(update) and its layer norm, [T, d] each.

    Args:
        update: half precision [T, d], contiguous.
        residual: of the same shape.
        weight: [d], of the layer norm.
        bias: [d].
        seed: int64 [1], of the dropout.
        epsilon: of the layer norm.
        dropout: share of `update` that becomes 0.
    """
    count, width = update.shape
    total, out = torch.empty_like(update), torch.empty_like(update)
    _residual_norm_kernel[(triton.cdiv(count, _ROWS),)](
        update, residual, weight, bias, seed, total, out, count, width, epsilon, dropout,
        _ROWS, triton.next_power_of_2(width), dropout > 0, num_warps=4,
    )  # fmt: skip
    return total, out


def residual_norm_gradients(
    gradient: Tensor, total: Tensor, weight: Tensor, seed: Tensor, epsilon: float, dropout: float
) -> NormGradients:
    """Return the gradients of `residual_norm`.

    Args:
        gradient: half precision [T, d], by the layer norm.
        total: half precision [T, d], the sum that `residual_norm` returned.
        weight: [d], of the layer norm.
        seed: as in the forward pass.
        epsilon: as in the forward pass.
        dropout: as in the forward pass.
    """
    count, width = total.shape
    programs, rows = _spread(total, 1, _ROWS)
    by_residual = torch.empty_like(total)
    by_update = torch.empty_like(total) if dropout else by_residual
    sums = torch.empty(programs, 3, width, device=total.device)
    _residual_norm_backward_kernel[(programs,)](
        gradient, total, weight, seed, by_residual, by_update, sums, count, width, epsilon, dropout, rows,
        _ROWS, triton.next_power_of_2(width), dropout > 0, num_warps=4,
    )  # fmt: skip
    return NormGradients(by_residual, by_update, *sums.sum(0).to(total.dtype).unbind())


def gelu_gradients(gradient: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient by the input of GELU in the memory of `gradient`, and its sum over tokens, [f].

    Args:
        gradient: half precision [T, f], by the output; overwritten.
        before: half precision [T, f], the input.
    """
    return gradient, _column_sums(gradient, before)


def column_sums(values: Tensor) -> Tensor:
    """Return the sums over tokens of half precision [T, f], added up in float32."""
    return _column_sums(values, None)


def _column_sums(gradient: Tensor, before: Tensor | None) -> Tensor:
    count, width = gradient.shape
    blocks = triton.cdiv(width, _COLUMNS)
    programs, rows = _spread(gradient, blocks, _COLUMN_ROWS)
    sums = torch.empty(programs, width, device=gradient.device)
    _column_sums_kernel[(blocks, programs)](
        gradient, gradient if before is None else before, sums, count, width, rows,
        _COLUMN_ROWS, _COLUMNS, before is not None, num_warps=8,
    )  # fmt: skip
    return sums.sum(0).to(gradient.dtype)


def _spread(values: Tensor, blocks: int, block: int) -> tuple[int, int]:
    """Return how many programs share the rows, beside `blocks` column blocks, and how many rows each takes."""
    processors: Any = torch.cuda.get_device_properties(values.device).multi_processor_count if values.is_cuda else 3
    most = triton.cdiv(processors * _PROGRAMS_PER_PROCESSOR, blocks)
    rows = triton.cdiv(triton.cdiv(len(values), most), block) * block
    return triton.cdiv(len(values), rows), rows
