"""Triton kernels that bring rows to unit length in the order of a side's views, and take gradients back.

Each is one launch for a whole side, whatever tensors its views come from.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bali_ds.losses.contrastive.triton_conversions import INTERPRETED, rounded

_ROWS = 64 if INTERPRETED else 2  # of one program
WIDTH_MULTIPLE = 64
"""Unit features are padded with zeros to a multiple of this width, so that the kernels need no masks along it."""


@triton.jit(do_not_specialize=["order", "num_rows", "num_first"])
def _normalize_kernel(  # type: ignore[no-untyped-def]
    first, second, order, out, inverse, num_rows, num_first, width, padded, rows: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * rows + tl.arange(0, rows)
    exists = row < num_rows
    source = tl.load(order + row, exists, other=0)[:, None]
    along = tl.arange(0, block)[None, :]
    inside = exists[:, None] & (along < width)
    in_first = inside & (source < num_first)
    in_second = inside & (source >= num_first)
    exact = tl.load(first + source * width + along, in_first, other=0.0).to(tl.float64)
    exact += tl.load(second + (source - num_first) * width + along, in_second, other=0.0).to(tl.float64)
    length = tl.sqrt(tl.sum(exact * exact, axis=1))
    scale = tl.where(length > 0, 1.0 / length, 0.0)
    unit = rounded((exact * scale[:, None]).to(tl.float32), out.dtype.element_ty)
    tl.store(out + row[:, None] * padded + along, unit, exists[:, None] & (along < padded))
    tl.store(inverse + row, scale, exists)


@triton.jit(do_not_specialize=["order", "num_rows", "num_first"])
def _backward_kernel(  # type: ignore[no-untyped-def]
    gradient, features, inverse, order, factor, first, second, radial, num_rows, num_first, width, padded,
    rows: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * rows + tl.arange(0, rows)
    exists = row < num_rows
    source = tl.load(order + row, exists, other=0)[:, None]
    along = tl.arange(0, block)[None, :]
    inside = exists[:, None] & (along < width)
    by_unit = tl.load(gradient + row[:, None] * padded + along, inside, other=0.0).to(tl.float64)
    unit = tl.load(features + row[:, None] * padded + along, inside, other=0.0).to(tl.float64)
    along_row = tl.sum(by_unit * unit, axis=1)
    scale = tl.load(factor)
    lengths = (tl.load(inverse + row, exists, other=0.0) * scale)[:, None]
    result = ((by_unit - along_row[:, None] * unit) * lengths).to(tl.float32)
    into_first = inside & (source < num_first)
    into_second = inside & (source >= num_first)
    tl.store(first + source * width + along, rounded(result, first.dtype.element_ty), into_first)
    tl.store(second + (source - num_first) * width + along, rounded(result, second.dtype.element_ty), into_second)
    tl.store(radial + row, along_row * scale, exists)


def normalize(tensors: tuple[Tensor, ...], order: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the concatenated rows at unit length in the given order, and their inverse lengths.

    Lengths are computed in float64: an error that all similarities of a row share, however small, is multiplied by the
    logit scale in the exponent. A row of zeros stays zero, with an inverse length of 0.

    Args:
        tensors: one or two, float [n_i, d] each.
        order: int64 [n], the position in the concatenation of each output row.
        dtype: of the result.

    Returns:
        `dtype` [n, d rounded up to a multiple of `WIDTH_MULTIPLE`] and float64 [n].
    """
    first, second = tensors[0].contiguous(), tensors[-1].contiguous()
    width = first.shape[1]
    padded = triton.cdiv(width, WIDTH_MULTIPLE) * WIDTH_MULTIPLE
    out = first.new_empty((len(order), padded), dtype=dtype)
    inverse = first.new_empty(len(order), dtype=torch.float64)
    if len(order):
        _normalize_kernel[(triton.cdiv(len(order), _ROWS),)](
            first, second, order, out, inverse, len(order), len(first), width, padded, _ROWS,
            triton.next_power_of_2(padded),
        )  # fmt: skip
    return out, inverse


def normalize_backward(
    gradient: Tensor, features: Tensor, inverse: Tensor, order: Tensor, factor: Tensor, like: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return `factor` times the gradients by the rows before normalization, from those by the unit rows.

    With x = r / |r| that is (g - <g, x> x) / |r|.

    Args:
        gradient: float [n, padded width], by the unit rows.
        features: float [n, padded width], the unit rows.
        inverse: float64 [n], the inverse lengths.
        order: int64 [n], see `normalize`.
        factor: float64 scalar.
        like: the tensors that were normalized; the results have their shapes and dtypes.

    Returns:
        The gradients, and float64 [n], <gradient, features> times `factor` of each row.
    """
    results = tuple(torch.empty_like(each, memory_format=torch.contiguous_format) for each in like)
    radial = inverse.new_empty(len(order))
    if len(order):
        _backward_kernel[(triton.cdiv(len(order), _ROWS),)](
            gradient, features, inverse, order, factor, results[0], results[-1], radial, len(order), len(like[0]),
            like[0].shape[1], features.shape[1], _ROWS, triton.next_power_of_2(features.shape[1]),
        )  # fmt: skip
    return results, radial
