"""Attention within short sequences on GPUs: whole sequences share a tile of queries and keys.

FlashAttention starts a block for every sequence and head, of 64 or 128 rows whatever the sequence's length; names have
five tokens. Here a block is a tile of up to 128 consecutive tokens that begins and ends with a sequence, so every key
of a query is in the query's own tile, and no gradient needs atomic additions.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 64  # tokens of a tile that one program is responsible for: what registers hold
_TO_FLOAT32 = triton.knobs.runtime.interpret  # the interpreter multiplies bfloat16 as if it were integers


@triton.jit
def _mixed(bits):  # type: ignore[no-untyped-def]
    """Return a bijective hash of 32 bits (Wellons, "Prospecting for hash functions", 2018: lowbias32)."""
    bits = (bits ^ (bits >> 16)) * 0x7FEB352D
    bits = (bits ^ (bits >> 15)) * 0x846CA68B
    return bits ^ (bits >> 16)


@triton.jit
def _scores(queries, keys, starts, rows, columns, end, scaling, window):  # type: ignore[no-untyped-def]
    """Return the scaled products of some rows and columns of a tile, -inf where a row does not see a column."""
    row_begins = tl.load(starts + rows, rows < end, other=-1)
    column_begins = tl.load(starts + columns, columns < end, other=-2)
    seen = (row_begins[:, None] == column_begins[None, :]) & (tl.abs(rows[:, None] - columns[None, :]) < window)
    return tl.where(seen, tl.dot(queries, tl.trans(keys), input_precision="ieee") * scaling, -float("inf"))


@triton.jit
def _factors(seeds, rows, columns, begin, head, count, dropout, size: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return what dropout multiplies each weight by: 0 for a share of `dropout`, else 1 / (1 - dropout)."""
    seed = tl.load(seeds)
    cells = (((head * count + rows) * size)[:, None] + (columns - begin)[None, :]).to(tl.uint32)
    bits = _mixed(_mixed(cells ^ seed.to(tl.uint32)) + (seed >> 32).to(tl.uint32))
    return tl.where(bits.to(tl.float32) * 2.0**-32 >= dropout, 1 / (1 - dropout), 0.0)


@triton.jit
def _load(values, indices, end, features, row_stride, head_stride, head, width, to_float32: tl.constexpr):  # type: ignore[no-untyped-def]
    places = indices.to(tl.int64)[:, None] * row_stride + head * head_stride + features[None, :]
    loaded = tl.load(values + places, (indices < end)[:, None] & (features < width)[None, :], other=0.0)
    return loaded.to(tl.float32) if to_float32 else loaded


@triton.jit
def _store(out, values, indices, end, features, head, heads, width):  # type: ignore[no-untyped-def]
    places = (indices.to(tl.int64)[:, None] * heads + head) * width + features[None, :]
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
    _store(out, mixed, rows, end, features, head, heads, width)


@triton.jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    query, key, value, out, gradient, by_query, by_key, by_value, normalizers, starts, tiles, seeds, count, width,
    query_stride, key_stride, value_stride, query_head, key_head, value_head, scaling, window, dropout,
    size: tl.constexpr, block: tl.constexpr, padded_width: tl.constexpr, drops: tl.constexpr, to_float32: tl.constexpr,
):  # fmt: skip
    """Write the gradients of a block of tokens of one tile and head: as keys and values, then as queries."""
    head, heads = tl.program_id(0), tl.num_programs(0)
    begin, end = tl.load(tiles + tl.program_id(2)), tl.load(tiles + tl.program_id(2) + 1)
    features = tl.arange(0, padded_width)
    own = begin + tl.program_id(1) * block + tl.arange(0, block)
    keys = _load(key, own, end, features, key_stride, key_head, head, width, to_float32)
    values = _load(value, own, end, features, value_stride, value_head, head, width, to_float32)
    by_keys = tl.zeros((block, padded_width), tl.float32)
    by_values = tl.zeros((block, padded_width), tl.float32)
    for first in range(0, size, block):
        rows = begin + first + tl.arange(0, block)
        queries = _load(query, rows, end, features, query_stride, query_head, head, width, to_float32)
        upstream = _load(gradient, rows, end, features, heads * width, width, head, width, to_float32)
        mixed = _load(out, rows, end, features, heads * width, width, head, width, True)
        weights, by_score = _weights_and_gradients(
            queries, keys, values, upstream, mixed, normalizers, starts, seeds, rows, own, begin, end, head, count,
            scaling, window, dropout, size, drops,
        )  # fmt: skip
        by_values = tl.dot(tl.trans(weights.to(values.dtype)), upstream, by_values, input_precision="ieee")
        by_keys = tl.dot(tl.trans(by_score.to(keys.dtype)), queries, by_keys, input_precision="ieee")
    _store(by_key, by_keys, own, end, features, head, heads, width)
    _store(by_value, by_values, own, end, features, head, heads, width)

    queries = _load(query, own, end, features, query_stride, query_head, head, width, to_float32)
    upstream = _load(gradient, own, end, features, heads * width, width, head, width, to_float32)
    mixed = _load(out, own, end, features, heads * width, width, head, width, True)
    by_queries = tl.zeros((block, padded_width), tl.float32)
    for first in range(0, size, block):
        columns = begin + first + tl.arange(0, block)
        keys = _load(key, columns, end, features, key_stride, key_head, head, width, to_float32)
        values = _load(value, columns, end, features, value_stride, value_head, head, width, to_float32)
        _, by_score = _weights_and_gradients(
            queries, keys, values, upstream, mixed, normalizers, starts, seeds, own, columns, begin, end, head, count,
            scaling, window, dropout, size, drops,
        )  # fmt: skip
        by_queries = tl.dot(by_score.to(keys.dtype), keys, by_queries, input_precision="ieee")
    _store(by_query, by_queries, own, end, features, head, heads, width)


@triton.jit
def _weights_and_gradients(  # type: ignore[no-untyped-def]
    queries, keys, values, upstream, mixed, normalizers, starts, seeds, rows, columns, begin, end, head, count,
    scaling, window, dropout, size: tl.constexpr, drops: tl.constexpr,
):  # fmt: skip
    """Return the weights of some rows and columns as the values met them, and the derivatives by their products."""
    scores = _scores(queries, keys, starts, rows, columns, end, scaling, window)
    weights = tl.exp(scores - tl.load(normalizers + head * count + rows, rows < end, other=0.0)[:, None])
    by_weight = tl.dot(upstream, tl.trans(values), input_precision="ieee")
    met = weights
    if drops:
        factors = _factors(seeds, rows, columns, begin, head, count, dropout, size)
        met, by_weight = weights * factors, by_weight * factors
    # the sum over a row of weights times their derivatives is that of the row's values times their gradient
    along = tl.sum(upstream.to(tl.float32) * mixed, axis=1)
    return met, weights * (by_weight - along[:, None]) * scaling


@torch.library.custom_op("bali_ds::tile_attention", mutates_args=())
def _attention(
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
) -> tuple[Tensor, Tensor]:
    """Return the values [T, h, e], contiguous, and the logs of the sums of exponentials, float32 [h, T]."""
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    normalizers = torch.empty(query.shape[1], query.shape[0], device=query.device)
    _launch(
        _forward_kernel, (query, key, value), (out, normalizers), starts, tiles, seed, size, scaling, dropout, window
    )
    return out, normalizers


@torch.library.custom_op("bali_ds::tile_attention_backward", mutates_args=())
def _attention_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor,
    tiles: Tensor,
    seed: Tensor,
    out: Tensor,
    normalizers: Tensor,
    size: int,
    scaling: float,
    dropout: float,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    by_query, by_key, by_value = (torch.empty(query.shape, dtype=query.dtype, device=query.device) for _ in range(3))
    outputs = (out, gradient.contiguous(), by_query, by_key, by_value, normalizers)
    _launch(_backward_kernel, (query, key, value), outputs, starts, tiles, seed, size, scaling, dropout, window)
    return by_query, by_key, by_value


def _launch(
    kernel: Any, inputs: tuple[Tensor, ...], others: tuple[Tensor, ...], starts: Tensor, tiles: Tensor,
    seed: Tensor, size: int, scaling: float, dropout: float, window: int,
) -> None:  # fmt: skip
    count, heads, width = inputs[0].shape
    strides = (*(each.stride(0) for each in inputs), *(each.stride(1) for each in inputs))
    kernel[(heads, size // _BLOCK, len(tiles) - 1)](
        *inputs, *others, starts, tiles, seed, count, width, *strides, scaling, window, dropout,
        size, _BLOCK, triton.next_power_of_2(width), dropout > 0, _TO_FLOAT32, num_warps=4, num_stages=1,
    )  # fmt: skip


@_attention.register_fake
def _(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    normalizers = query.new_empty(query.shape[1], query.shape[0], dtype=torch.float32)
    return query.new_empty(query.shape), normalizers


@_attention_backward.register_fake
def _(_gradient: Tensor, query: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), query.new_empty(query.shape), query.new_empty(query.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:6], *output)
    ctx.options = inputs[6:]


def _gradients(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return (*_attention_backward(gradient, *ctx.saved_tensors, *ctx.options), *[None] * 7)


_attention.register_autograd(_gradients, setup_context=_save)


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
    values: Tensor = _attention(query, key, value, starts, tiles, seed, size, scaling, dropout, window)[0]
    return values
