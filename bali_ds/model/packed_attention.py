"""Attention within each of several packed sequences, as an attention implementation of transformers.

A model with this implementation reads one row of all tokens, with the position of each token in its sequence. On a GPU
short sequences share tiles, and the kernels of FlashAttention (Dao et al., NeurIPS 2022) take the offsets of longer
ones; on a CPU, torch's fused attention runs over buckets of sequences of similar length.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from bali_ds.data.batch import PackedSequences
from bali_ds.errors import InputError
from bali_ds.model.attention_tiles import AttentionTiles, attend_in_tiles, tiles_of_packs
from bali_ds.model.length_buckets import LengthBucket, buckets_of_packs

NAME = "packed"
_BUCKETS = 16  # calls of a CPU's attention: enough that hardly anything is padded


def attention_arguments(packs: Sequence[PackedSequences], *, on_gpu: bool) -> dict[str, Any]:
    """Return what a model's forward pass hands through to `packed_attention` for packs that follow each other."""
    if not on_gpu:
        return {"buckets": buckets_of_packs(packs, _BUCKETS)}
    begins = accumulate((len(pack.input_ids) for pack in packs), initial=0)
    offsets = [packs[0].offsets[:1], *(pack.offsets[1:] + begin for pack, begin in zip(packs, begins, strict=False))]
    return {
        "cu_seq_lens_q": torch.cat(offsets).to(torch.int32),
        "max_length_q": max(int(pack.lengths[-1]) for pack in packs),
        "tiles": tiles_of_packs(packs),
    }


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    buckets: list[LengthBucket] | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int = 0,
    tiles: AttentionTiles | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return the values that each token attends to in its own sequence, with the signature that transformers calls.

    A call without `buckets` and `cu_seq_lens_q` is one with ordinary rows.

    Args:
        module: the attention layer.
        query: float [1, h, T, e], of h heads; for rows [n, h, L, e].
        key: float, of the same shape.
        value: float, of the same shape.
        attention_mask: bool [n, 1, L, L] of rows, whether a token sees another; None for all.
        scaling: of products; None for 1 / sqrt(e).
        dropout: of attention weights.
        sliding_window: a token sees those at a distance below this; None for all.
        buckets: the sequences in length buckets, on a CPU.
        cu_seq_lens_q: int32 [n + 1], their offsets, on a GPU.
        max_length_q: an upper bound of their lengths, on a GPU.
        tiles: the sequences in tiles, on a GPU; None where one is too long.

    Returns:
        float [1, T, h, e] or [n, L, h, e], and no weights.
    """
    dropout = dropout if module.training else 0.0
    options = (scaling, dropout, sliding_window)
    if buckets is None and cu_seq_lens_q is None:
        return _in_rows(query, key, value, attention_mask, *options).transpose(1, 2), None
    query, key, value = (each.squeeze(0).transpose(0, 1) for each in (query, key, value))
    if query.is_meta and buckets is None:
        values = _Shapes.apply(query, key, value)
    elif tiles is not None and query.dtype != torch.float32:
        values = attend_in_tiles(query, key, value, tiles, *options)
    elif buckets is not None:
        values = _in_buckets(query, key, value, buckets, *options)
    else:
        kernel = _MemoryEfficient if query.dtype == torch.float32 else _Flash
        values = kernel.apply(query, key, value, cu_seq_lens_q, max_length_q, *options)
    return values.unsqueeze(0), None


def _in_buckets(
    query: Tensor, key: Tensor, value: Tensor, buckets: list[LengthBucket],
    scaling: float | None, dropout: float, window: int | None,
) -> Tensor:  # fmt: skip
    # not slices: the backward pass of each would fill a gradient of all tokens
    sizes = [bucket.size for bucket in buckets]
    parts = zip(query.split(sizes), key.split(sizes), value.split(sizes), buckets, strict=True)
    return torch.cat([_in_bucket(*part, scaling, dropout, window) for part in parts])


def _in_bucket(
    query: Tensor, key: Tensor, value: Tensor, bucket: LengthBucket,
    scaling: float | None, dropout: float, window: int | None,
) -> Tensor:  # fmt: skip
    query, key, value = (bucket.unpack(each).transpose(1, 2) for each in (query, key, value))
    seen = None if bucket.valid is None else bucket.valid[:, None, None, :]
    return bucket.pack(_in_rows(query, key, value, seen, scaling, dropout, window).transpose(1, 2))


def _in_rows(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None,
    scaling: float | None, dropout: float, window: int | None,
) -> Tensor:  # fmt: skip
    length = query.shape[2]
    if window is not None and length > window:
        places = torch.arange(length, device=query.device)
        near = (places[:, None] - places).abs() < window
        seen = near if seen is None else seen & near
    return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, dropout_p=dropout, scale=scaling)


def _mask_of_rows(*, attention_mask: Tensor | None = None, **options: Any) -> Tensor | None:
    """Return transformers' mask of padded rows; None for packed sequences, which come without padding."""
    return None if attention_mask is None else sdpa_mask(attention_mask=attention_mask, **options)


def flash_values(
    query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, longest: int,
    scaling: float | None, dropout: float, window: int | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return values half precision [T, h, e] by torch's FlashAttention, and what `flash_gradients` needs beside them.

    `torch.nn.attention.varlen` has no dropout. Arguments are those of `packed_attention`, with [T, h, e].
    """
    values, normalizers, seeds, unused, _ = torch.ops.aten._flash_attention_forward(
        query, key, value, offsets, offsets, longest, longest, dropout, False, False, **_flash_options(scaling, window)
    )
    return values, normalizers, seeds, unused


def flash_gradients(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, kept: tuple[Tensor, ...], offsets: Tensor,
    longest: int, scaling: float | None, dropout: float, window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients by query, key and value; `kept` is what `flash_values` returned."""
    values, normalizers, seeds, unused = kept
    by_query, by_key, by_value = torch.ops.aten._flash_attention_backward(
        gradient.contiguous(), query, key, value, values, normalizers, offsets, offsets,
        longest, longest, dropout, False, seeds, unused, **_flash_options(scaling, window),
    )  # fmt: skip
    return by_query, by_key, by_value


def _flash_options(scaling: float | None, window: int | None) -> dict[str, Any]:
    side = -1 if window is None else window - 1
    return {"scale": scaling, "window_size_left": side, "window_size_right": side}


class _Flash(torch.autograd.Function):
    """FlashAttention of torch itself, of half precision."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, *options: Any) -> Tensor:
        kept = flash_values(query, key, value, offsets, *options)
        ctx.save_for_backward(query, key, value, offsets, *kept)
        ctx.options = options
        return kept[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, offsets, *kept = ctx.saved_tensors
        return *flash_gradients(gradient, query, key, value, tuple(kept), offsets, *ctx.options), *[None] * 5


class _Shapes(torch.autograd.Function):
    """What attention on a GPU keeps, for models on the meta device."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        values = inputs[0].new_empty(inputs[0].shape)
        ctx.save_for_backward(*inputs, values, values.new_empty(values.shape[:2], dtype=torch.float32))
        return values

    @staticmethod
    def backward(ctx: Any, *_gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(saved.new_empty(saved.shape) for saved in ctx.saved_tensors[:3])


class _MemoryEfficient(torch.autograd.Function):
    """Memory-efficient attention of torch itself (Rabe and Staats, 2021), which also takes float32."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, longest: int,
        scaling: float | None, dropout: float, window: int | None,
    ) -> Tensor:  # fmt: skip
        if window is not None and longest > window:
            raise InputError(
                "text_encoder.attention: packed has no sliding windows in float32 on a GPU; set precision to bf16, or "
                "attention to sdpa"
            )
        batches = [each.unsqueeze(0) for each in (query, key, value)]
        values, normalizers, seed, offset, *_ = torch.ops.aten._efficient_attention_forward(
            *batches, None, offsets, offsets, longest, longest, dropout, 0, True, scale=scaling
        )
        ctx.save_for_backward(*batches, values, normalizers, offsets, seed, offset)
        ctx.longest, ctx.dropout, ctx.scaling = longest, dropout, scaling
        return values.squeeze(0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, values, normalizers, offsets, seed, offset = ctx.saved_tensors
        *gradients, _ = torch.ops.aten._efficient_attention_backward(
            gradient.contiguous().unsqueeze(0), query, key, value, None, values, offsets, offsets,
            ctx.longest, ctx.longest, normalizers, ctx.dropout, seed, offset, 0, False, scale=ctx.scaling,
        )  # fmt: skip
        return (*(each.squeeze(0) for each in gradients), *[None] * 5)


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _mask_of_rows)
