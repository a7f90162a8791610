"""Attention within short sequences on GPUs: whole sequences share a tile of queries and keys.

FlashAttention starts a block for every sequence and head, of 64 or 128 rows whatever the sequence's length; names have
five tokens. Here a block is a tile of up to 128 consecutive tokens that begins and ends with a sequence, so every key
of a query is in the query's own tile: there is no loop over keys, nothing is saved for the backward pass but queries,
keys and values, and no gradient needs atomic additions.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = 32  # queries of a tile that are processed at a time: what registers hold
_WARPS = 8
_TO_FLOAT32 = triton.knobs.runtime.interpret  # the interpreter multiplies bfloat16 as if it were integers


@triton.jit
def _mixed(bits):  # type: ignore[no-untyped-def]
    """Return a bijective hash of 32 bits (Wellons, "Prospecting for hash functions", 2018: lowbias32)."""
    bits = (bits ^ (bits >> 16)) * 0x7FEB352D
    bits = (bits ^ (bits >> 15)) * 0x846CA68B
    return bits ^ (bits >> 16)


@triton.jit
def _weights(queries, keys, starts, rows, columns, end, scaling, window):  # type: ignore[no-untyped-def]
    """Return the attention weights of some rows of a tile over all of its columns."""
    row_begins = tl.load(starts + rows, rows < end, other=-1)
    column_begins = tl.load(starts + columns, columns < end, other=-2)
    seen = (row_begins[:, None] == column_begins[None, :]) & (tl.abs(rows[:, None] - columns[None, :]) < window)
    scores = tl.where(seen, tl.dot(queries, tl.trans(keys), input_precision="ieee") * scaling, -float("inf"))
    largest = tl.where(rows < end, tl.max(scores, axis=1), 0.0)
    weights = tl.exp(scores - largest[:, None])
    return weights / tl.where(rows < end, tl.sum(weights, axis=1), 1.0)[:, None]


@triton.jit
def _dropped(values, seeds, rows, places, head, count, dropout, size: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return values with a share of `dropout` set to 0 and the others divided by the rest, the same in every call."""
    seed = tl.load(seeds)
    cells = (((head * count + rows) * size)[:, None] + places[None, :]).to(tl.uint32)
    bits = _mixed(_mixed(cells ^ seed.to(tl.uint32)) + (seed >> 32).to(tl.uint32))
    return tl.where(bits.to(tl.float32) * 2.0**-32 >= dropout, values * (1 / (1 - dropout)), 0.0)


@triton.jit
def _load(values, indices, exist, features, row_stride, head_stride, head, width, to_float32: tl.constexpr):  # type: ignore[no-untyped-def]
    places = indices.to(tl.int64)[:, None] * row_stride + head * head_stride + features[None, :]
    loaded = tl.load(values + places, exist[:, None] & (features < width)[None, :], other=0.0)
    return loaded.to(tl.float32) if to_float32 else loaded


@triton.jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    query, key, value, out, starts, tiles, seeds, count, width, query_stride, key_stride, value_stride,
    query_head, key_head, value_head, scaling, window, dropout,
    size: tl.constexpr, block: tl.constexpr, padded_width: tl.constexpr, drops: tl.constexpr, to_float32: tl.constexpr,
):  # fmt: skip
    """Write the values of one tile and head to out [T, h, e], contiguous."""
    head, heads = tl.program_id(0), tl.num_programs(0)
    begin, end = tl.load(tiles + tl.program_id(1)), tl.load(tiles + tl.program_id(1) + 1)
    features, places = tl.arange(0, padded_width), tl.arange(0, size)
    columns = begin + places
    keys = _load(key, columns, columns < end, features, key_stride, key_head, head, width, to_float32)
    values = _load(value, columns, columns < end, features, value_stride, value_head, head, width, to_float32)
    for first in range(0, size, block):
        rows = begin + first + tl.arange(0, block)
        queries = _load(query, rows, rows < end, features, query_stride, query_head, head, width, to_float32)
        weights = _weights(queries, keys, starts, rows, columns, end, scaling, window)
        if drops:
            weights = _dropped(weights, seeds, rows, places, head, count, dropout, size)
        mixed = tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        cells = (rows.to(tl.int64)[:, None] * heads + head) * width + features[None, :]
        tl.store(out + cells, mixed, (rows < end)[:, None] & (features < width)[None, :])


@triton.jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    query, key, value, gradient, by_query, by_key, by_value, starts, tiles, seeds, count, width,
    query_stride, key_stride, value_stride, query_head, key_head, value_head, scaling, window, dropout,
    size: tl.constexpr, block: tl.constexpr, padded_width: tl.constexpr, drops: tl.constexpr, to_float32: tl.constexpr,
):  # fmt: skip
    """Write the gradients of one tile and head to by_query, by_key and by_value [T, h, e], contiguous."""
    head, heads = tl.program_id(0), tl.num_programs(0)
    begin, end = tl.load(tiles + tl.program_id(1)), tl.load(tiles + tl.program_id(1) + 1)
    features, places = tl.arange(0, padded_width), tl.arange(0, size)
    columns = begin + places
    keys = _load(key, columns, columns < end, features, key_stride, key_head, head, width, to_float32)
    values = _load(value, columns, columns < end, features, value_stride, value_head, head, width, to_float32)
    key_sums = tl.zeros((size, padded_width), tl.float32)
    value_sums = tl.zeros((size, padded_width), tl.float32)
    for first in range(0, size, block):
        rows = begin + first + tl.arange(0, block)
        queries = _load(query, rows, rows < end, features, query_stride, query_head, head, width, to_float32)
        upstream = _load(gradient, rows, rows < end, features, heads * width, width, head, width, to_float32)
        weights = _weights(queries, keys, starts, rows, columns, end, scaling, window)
        by_weight = tl.dot(upstream, tl.trans(values), input_precision="ieee")
        dropped = weights
        if drops:
            dropped = _dropped(weights, seeds, rows, places, head, count, dropout, size)
            by_weight = _dropped(by_weight, seeds, rows, places, head, count, dropout, size)
        value_sums = tl.dot(tl.trans(dropped.to(values.dtype)), upstream, value_sums, input_precision="ieee")
        by_score = weights * (by_weight - tl.sum(weights * by_weight, axis=1)[:, None]) * scaling
        by_score = by_score.to(keys.dtype)
        key_sums = tl.dot(tl.trans(by_score), queries, key_sums, input_precision="ieee")
        cells = (rows.to(tl.int64)[:, None] * heads + head) * width + features[None, :]
        by_row = tl.dot(by_score, keys, input_precision="ieee")
        tl.store(by_query + cells, by_row, (rows < end)[:, None] & (features < width)[None, :])
    cells = (columns.to(tl.int64)[:, None] * heads + head) * width + features[None, :]
    stored = (columns < end)[:, None] & (features < width)[None, :]
    tl.store(by_key + cells, key_sums, stored)
    tl.store(by_value + cells, value_sums, stored)


@torch.library.custom_op("bali_ds::tile_attention", mutates_args=())
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
        size: most tokens of a tile, a power of two from 16.
        scaling: of products.
        dropout: of attention weights.
        window: a token sees those at a distance below this.
    """
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    _launch(_forward_kernel, (query, key, value), (out,), starts, tiles, seed, size, scaling, dropout, window)
    return out


@torch.library.custom_op("bali_ds::tile_attention_backward", mutates_args=())
def _tile_attention_backward(
    gradient: Tensor,
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
) -> tuple[Tensor, Tensor, Tensor]:
    by_query, by_key, by_value = (torch.empty(query.shape, dtype=query.dtype, device=query.device) for _ in range(3))
    outputs = (gradient.contiguous(), by_query, by_key, by_value)
    _launch(_backward_kernel, (query, key, value), outputs, starts, tiles, seed, size, scaling, dropout, window)
    return by_query, by_key, by_value


def _launch(
    kernel: Any, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], starts: Tensor, tiles: Tensor,
    seed: Tensor, size: int, scaling: float, dropout: float, window: int,
) -> None:  # fmt: skip
    count, heads, width = inputs[0].shape
    strides = (*(each.stride(0) for each in inputs), *(each.stride(1) for each in inputs))
    warps = _WARPS if size > 64 else 4
    kernel[(heads, len(tiles) - 1)](
        *inputs, *outputs, starts, tiles, seed, count, width, *strides, scaling, window, dropout,
        size, min(size, _ROWS), triton.next_power_of_2(width), dropout > 0, _TO_FLOAT32,
        num_warps=warps, num_stages=1,
    )  # fmt: skip


@tile_attention.register_fake
def _(query: Tensor, *_: Any) -> Tensor:
    return query.new_empty(query.shape)


@_tile_attention_backward.register_fake
def _(_gradient: Tensor, query: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), query.new_empty(query.shape), query.new_empty(query.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[:6])
    ctx.options = inputs[6:]


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return (*_tile_attention_backward(gradient, *ctx.saved_tensors, *ctx.options), *[None] * 7)


tile_attention.register_autograd(_gradients, setup_context=_save)
