"""Attention within short sequences on GPUs: whole sequences share a tile of queries and keys.

FlashAttention starts a block for every sequence and head, of 64 or 128 rows whatever the sequence's length; names have
five tokens. Here a block is a tile of up to 128 consecutive tokens that begins and ends with a sequence, so every key
of a query is in the query's own tile, and no gradient needs atomic additions.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bali_ds.model.dropout_mask import dropout_factors

_ROWS, _WARPS = 64, 4  # of a program of the forward pass
_BACKWARD_WARPS = {64: 4, 128: 8}  # of a program for a whole tile, by its size
_TO_FLOAT32 = triton.knobs.runtime.interpret  # the interpreter multiplies bfloat16 as if it were integers


@triton.jit
def _scores(queries, keys, starts, rows, columns, end, scaling, window):  # type: ignore[no-untyped-def]
    """Return the scaled products of some rows and columns of a tile, -inf where a row does not see a column."""
    row_begins = tl.load(starts + rows, rows < end, other=-1)
    column_begins = tl.load(starts + columns, columns < end, other=-2)
    seen = (row_begins[:, None] == column_begins[None, :]) & (tl.abs(rows[:, None] - columns[None, :]) < window)
    return tl.where(seen, tl.dot(queries, tl.trans(keys), input_precision="ieee") * scaling, -float("inf"))


@triton.jit
def _factors(seeds, rows, columns, begin, head, count, dropout, size: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return what dropout multiplies the weights of some rows and columns of a tile by."""
    cells = ((head * count + rows) * size)[:, None] + (columns - begin)[None, :]
    return dropout_factors(seeds, cells, dropout)


@triton.jit
def _load(values, indices, end, features, row_stride, head_stride, head, width, to_float32: tl.constexpr):  # type: ignore[no-untyped-def]
    places = indices.to(tl.int64)[:, None] * row_stride + head * head_stride + features[None, :]
    loaded = tl.load(values + places, (indices < end)[:, None] & (features < width)[None, :], other=0.0)
    return loaded.to(tl.float32) if to_float32 else loaded


@triton.jit
def _store(out, values, indices, end, features, row_stride, head, width):  # type: ignore[no-untyped-def]
    places = indices.to(tl.int64)[:, None] * row_stride + head * width + features[None, :]
    tl.store(out + places, values, (indices < end)[:, None] & (features < width)[None, :])


@triton.jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    query, key, value, out, normalizers, starts, tiles, seeds, count, width, query_stride, key_stride, value_stride,
    query_head, key_head, value_head, scaling, window, dropout,
    size: tl.constexpr, block: tl.constexpr, padded_width: tl.constexpr, drops: tl.constexpr, to_float32: tl.constexpr,
):  # fmt: skip
    """Write the values of a block of rows of one tile and head, and the logs of the sums of their weights."""
    head, heads = tl.program_id(0), tl.num_programs(0)
    begin, end = tl.load(tiles + tl.program_id(2)), tl.load(tiles + tl.program_id(2) + 1)
    features, columns = tl.arange(0, padded_width), begin + tl.arange(0, size)
    rows = begin + tl.program_id(1) * block + tl.arange(0, block)
    queries = _load(query, rows, end, features, query_stride, query_head, head, width, to_float32)
    keys = _load(key, columns, end, features, key_stride, key_head, head, width, to_float32)
    scores = _scores(queries, keys, starts, rows, columns, end, scaling, window)
    largest = tl.where(rows < end, tl.max(scores, axis=1), 0.0)
    weights = tl.exp(scores - largest[:, None])
    sums = tl.where(rows < end, tl.sum(weights, axis=1), 1.0)
    tl.store(normalizers + head * count + rows, largest + tl.log(sums), rows < end)
    if drops:
        weights *= _factors(seeds, rows, columns, begin, head, count, dropout, size)
    values = _load(value, columns, end, features, value_stride, value_head, head, width, to_float32)
    mixed = tl.dot(weights.to(values.dtype), values, input_precision="ieee") / sums[:, None]
    _store(out, mixed, rows, end, features, heads * width, head, width)


@triton.jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    query, key, value, out, gradient, by_query, by_key, by_value, normalizers, starts, tiles, seeds, count, width,
    query_stride, key_stride, value_stride, query_head, key_head, value_head, scaling, window, dropout, by_stride,
    size: tl.constexpr, padded_width: tl.constexpr, drops: tl.constexpr, to_float32: tl.constexpr,
):  # fmt: skip
    """Write the gradients by the queries, keys and values of one tile and head."""
    head, heads = tl.program_id(0), tl.num_programs(0)
    begin, end = tl.load(tiles + tl.program_id(1)), tl.load(tiles + tl.program_id(1) + 1)
    features, own = tl.arange(0, padded_width), begin + tl.arange(0, size)
    # The sum over a row of weights times their derivatives is that of the row's values times their gradient. It comes
    # first, and weights as the values met them stay in half precision: four matrices of a tile do not fit registers.
    upstream = _load(gradient, own, end, features, heads * width, width, head, width, to_float32)
    mixed = _load(out, own, end, features, heads * width, width, head, width, True)
    along = tl.sum(upstream.to(tl.float32) * mixed, axis=1)
    queries = _load(query, own, end, features, query_stride, query_head, head, width, to_float32)
    keys = _load(key, own, end, features, key_stride, key_head, head, width, to_float32)
    scores = _scores(queries, keys, starts, own, own, end, scaling, window)
    weights = tl.exp(scores - tl.load(normalizers + head * count + own, own < end, other=0.0)[:, None])
    met = weights
    if drops:
        met *= _factors(seeds, own, own, begin, head, count, dropout, size)
    met = met.to(upstream.dtype)
    by_values = tl.dot(tl.trans(met), upstream, input_precision="ieee")
    _store(by_value, by_values, own, end, features, by_stride, head, width)
    values = _load(value, own, end, features, value_stride, value_head, head, width, to_float32)
    by_weight = tl.dot(upstream, tl.trans(values), input_precision="ieee")
    by_score = ((met.to(tl.float32) * by_weight - weights * along[:, None]) * scaling).to(keys.dtype)
    by_keys = tl.dot(tl.trans(by_score), queries, input_precision="ieee")
    _store(by_key, by_keys, own, end, features, by_stride, head, width)
    by_queries = tl.dot(by_score, keys, input_precision="ieee")
    _store(by_query, by_queries, own, end, features, by_stride, head, width)


def tile_values(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, tiles: Tensor, seed: Tensor,
    size: int, scaling: float, dropout: float, window: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the values [T, h, e], contiguous, and the logs of the sums of exponentials, float32 [h, T]."""
    count, heads, width = query.shape
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    normalizers = torch.empty(heads, count, device=query.device)
    _forward_kernel[(heads, size // _ROWS, len(tiles) - 1)](
        query, key, value, out, normalizers, starts, tiles, seed, count, width, *_strides(query, key, value),
        scaling, window, dropout,
        size, _ROWS, triton.next_power_of_2(width), dropout > 0, _TO_FLOAT32,
        num_warps=_WARPS, num_stages=1,
    )  # fmt: skip
    return out, normalizers


def write_gradients(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, starts: Tensor, tiles: Tensor, seed: Tensor,
    out: Tensor, normalizers: Tensor, size: int, scaling: float, dropout: float, window: int,
    *, into: Sequence[Tensor],
) -> None:  # fmt: skip
    """Write the gradients by query, key and value.

    Args:
        gradient: half precision [T, h, e], by the values.
        query: as in the forward pass, like all others that `tile_attention` explains.
        key: likewise.
        value: likewise.
        starts: likewise.
        tiles: likewise.
        seed: likewise.
        out: the values.
        normalizers: what the forward pass returned beside them.
        size: as in the forward pass.
        scaling: likewise.
        dropout: likewise.
        window: likewise.
        into: three tensors [T, h, e], contiguous along h and e, whose rows are as far apart as each other's.
    """
    count, heads, width = query.shape
    _backward_kernel[(heads, len(tiles) - 1)](
        query, key, value, out, gradient.contiguous(), *into, normalizers, starts, tiles, seed, count, width,
        *_strides(query, key, value), scaling, window, dropout, into[0].stride(0),
        size, triton.next_power_of_2(width), dropout > 0, _TO_FLOAT32, num_warps=_BACKWARD_WARPS[size], num_stages=1,
    )  # fmt: skip


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    return (*(each.stride(0) for each in tensors), *(each.stride(1) for each in tensors))


class _Attention(torch.autograd.Function):
    """Attention whose gradients by query, key and value come from one pass over each tile."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, starts: Tensor, tiles: Tensor, seed: Tensor, *options: Any
    ) -> Tensor:
        out, normalizers = tile_values(query, key, value, starts, tiles, seed, *options)
        ctx.save_for_backward(query, key, value, starts, tiles, seed, out, normalizers)
        ctx.options = options
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query = ctx.saved_tensors[0]
        gradients = tuple(torch.empty(query.shape, dtype=query.dtype, device=query.device) for _ in range(3))
        write_gradients(gradient, *ctx.saved_tensors, *ctx.options, into=gradients)
        return *gradients, *[None] * 7


def tile_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor,
    tiles: Tensor,
    seed: Tensor,
    size: int,
    scaling: float,
    dropout: float,
    window: int,
) -> Tensor:
    """Return the values that each token attends to in its own sequence, float [T, h, e], contiguous.

    Args:
        query: half precision [T, h, e], contiguous along e.
        key: of the same shape.
        value: of the same shape.
        starts: int32 [T], the flat position of the first token of each token's sequence.
        tiles: int32 [tiles + 1], from `bali_ds.model.attention_tiles.tile_offsets`.
        seed: int64 [1], of the dropout.
        size: most tokens of a tile, a power of two from 64.
        scaling: of products.
        dropout: of attention weights.
        window: a token sees those at a distance below this.
    """
    values: Tensor = _Attention.apply(query, key, value, starts, tiles, seed, size, scaling, dropout, window)
    return values
