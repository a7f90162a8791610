"""BERT's transformer layer as one operation, for packed sequences in half precision on a GPU.

Where matrix products are fast, a layer is bound by memory and by launches: those of transformers start twice as many
kernels, read each gradient once more for the bias, and add the gradients of residual connections separately. Here a
layer takes 11 kernels forward and 21 backward: queries, keys and values are one product, residual gradients are added
by the products, and everything between two products is one pass (`bali_ds.model.fused_kernels`).
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bali_ds.model.attention_tiles import LONGEST, AttentionTiles
from bali_ds.model.packed_attention import flash_gradients, flash_values

LAYERS = ("BertLayer", "RobertaLayer", "XLMRobertaLayer", "CamembertLayer", "ElectraLayer")
"""The layers of transformers that compute what BERT's does."""


class PackedAttention(NamedTuple):
    """Attention within packed sequences of one layer.

    Attributes:
        offsets: int32 [n + 1], of the sequences.
        longest: an upper bound of their lengths.
        tiles: the sequences in tiles; None where one is too long, FlashAttention then reads them.
        scaling: of products.
        dropout: of attention weights.
    """

    offsets: Tensor
    longest: int
    tiles: AttentionTiles | None
    scaling: float
    dropout: float

    def values(self, query: Tensor, key: Tensor, value: Tensor, seed: Tensor) -> tuple[Tensor, ...]:
        """Return values [T, h, e] of query, key and value, and what `write_gradients` needs beside them."""
        if query.is_meta:
            return torch.empty_like(query).contiguous(), query.new_empty(query.shape[:2], dtype=torch.float32)
        if self.tiles is None:
            return flash_values(query, key, value, self.offsets, self.longest, self.scaling, self.dropout, None)
        from bali_ds.model.tile_attention import tile_values

        return tile_values(query, key, value, *self._of_tiles(self.tiles, seed))

    def write_gradients(
        self, gradient: Tensor, inputs: tuple[Tensor, ...], seed: Tensor, kept: tuple[Tensor, ...], into: Tensor
    ) -> None:
        """Write the gradients by query, key and value into float [T, 3, h, e].

        Args:
            gradient: [T, h, e], by the values.
            inputs: query, key and value.
            seed: as in the forward pass.
            kept: what `values` returned.
            into: contiguous.
        """
        query, key, value = inputs
        if query.is_meta:
            return
        if self.tiles is None:
            options = (self.offsets, self.longest, self.scaling, self.dropout, None)
            torch.stack(flash_gradients(gradient, query, key, value, kept, *options), dim=1, out=into)
            return
        from bali_ds.model.tile_attention import write_gradients

        values, normalizers = kept
        starts, offsets, seed, size, *numbers = self._of_tiles(self.tiles, seed)
        write_gradients(
            gradient, query, key, value, starts, offsets, seed, values, normalizers, size, *numbers,
            into=into.unbind(1),
        )  # fmt: skip

    def _of_tiles(self, tiles: AttentionTiles, seed: Tensor) -> tuple[Any, ...]:
        return tiles.starts, tiles.offsets, seed, tiles.size, self.scaling, self.dropout, LONGEST


class LayerWeights(NamedTuple):
    """The parameters of a layer, for width d and inner width f."""

    query: Tensor
    query_bias: Tensor
    key: Tensor
    key_bias: Tensor
    value: Tensor
    value_bias: Tensor
    mix: Tensor
    mix_bias: Tensor
    first_norm: Tensor
    first_norm_bias: Tensor
    up: Tensor
    up_bias: Tensor
    down: Tensor
    down_bias: Tensor
    second_norm: Tensor
    second_norm_bias: Tensor


def _kernels(states: Tensor) -> ModuleType:
    """Return the kernels that exist where the states are; Triton is not installed everywhere."""
    return import_module("bali_ds.model.fused_shapes" if states.is_meta else "bali_ds.model.fused_kernels")


class _FusedLayer(torch.autograd.Function):
    """The layer; arguments: states [T, d], attention, (heads, dropout, epsilon), and the weights."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, attention: PackedAttention, options: Any, *parameters: Tensor) -> Tensor:
        residual_norm = _kernels(states).residual_norm
        weights, (heads, dropout, epsilon) = LayerWeights(*parameters), options
        count, width = states.shape
        # drawn even where nothing is dropped: kernels read them
        seeds = torch.randint(2**62, (3, 1), device=states.device)
        inner = torch.cat((weights.query, weights.key, weights.value))
        inner_bias = torch.cat((weights.query_bias, weights.key_bias, weights.value_bias))
        projected = torch.addmm(inner_bias, states, inner.t())
        query, key, value = projected.view(count, 3, heads, width // heads).unbind(1)
        values, *kept = attention.values(query, key, value, seeds[0])
        mixed = torch.addmm(weights.mix_bias, values.view(count, width), weights.mix.t())
        norm = (weights.first_norm, weights.first_norm_bias, seeds[1], epsilon, dropout)
        first, middle = residual_norm(mixed, states, *norm)
        before = torch.addmm(weights.up_bias, middle, weights.up.t())
        after = F.gelu(before)
        norm = (weights.second_norm, weights.second_norm_bias, seeds[2], epsilon, dropout)
        second, out = residual_norm(torch.addmm(weights.down_bias, after, weights.down.t()), middle, *norm)
        ctx.attention, ctx.options = attention, options
        ctx.save_for_backward(
            states, seeds, projected, first, middle, before, after, second, values, *kept, inner, *parameters
        )
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        kernels = _kernels(gradient)
        saved, (heads, dropout, epsilon) = ctx.saved_tensors, ctx.options
        states, seeds, projected, first, middle, before, after, second, *kept, inner = saved[
            : -len(LayerWeights._fields)
        ]
        weights = LayerWeights(*saved[-len(LayerWeights._fields) :])
        count, width = states.shape
        by_second = kernels.residual_norm_gradients(
            gradient.contiguous(), second, weights.second_norm, seeds[2], epsilon, dropout
        )
        by_down = by_second.update.t() @ after
        by_before, by_up_bias = kernels.gelu_gradients(by_second.update @ weights.down, before)
        by_up = by_before.t() @ middle
        by_middle = by_second.residual.addmm_(by_before, weights.up)  # in place: else the residual is copied first
        by_first = kernels.residual_norm_gradients(by_middle, first, weights.first_norm, seeds[1], epsilon, dropout)
        by_mix = by_first.update.t() @ kept[0].view(count, width)
        by_values = (by_first.update @ weights.mix).view_as(kept[0])
        by_projected = torch.empty_like(projected)
        grouped = (count, 3, heads, width // heads)
        inputs = projected.view(grouped).unbind(1)
        ctx.attention.write_gradients(by_values, inputs, seeds[0], tuple(kept), by_projected.view(grouped))
        by_inner = by_projected.t() @ states
        by_states = by_first.residual.addmm_(by_projected, inner) if ctx.needs_input_grad[0] else None
        by_inner_weights, by_inner_biases = by_inner.chunk(3), kernels.column_sums(by_projected).chunk(3)
        found = [
            *(each for pair in zip(by_inner_weights, by_inner_biases, strict=True) for each in pair),
            by_mix, by_first.update_sum, by_first.weight, by_first.bias,
            by_up, by_up_bias, by_down, by_second.update_sum, by_second.weight, by_second.bias,
        ]  # fmt: skip
        return by_states, None, None, *found


def fuse_layers(layers: nn.ModuleList) -> bool:
    """Let the layers read packed sequences in half precision as one operation each; return whether they can.

    Other calls take the layers' own code. ZeRO stage 3 gathers parameters module by module and cannot be combined with
    it.
    """
    if not all(_can_be_fused(layer) for layer in layers):
        return False
    for layer in layers:
        layer.forward = partial(_forward, layer, layer.forward)
    return True


def _can_be_fused(layer: Any) -> bool:
    """Return whether a layer is one of BERT's as it came, without adapters."""
    if type(layer).__name__ not in LAYERS or layer.is_decoder:
        return False
    attention, output = layer.attention.self, layer.attention.output
    linear = (
        attention.query,
        attention.key,
        attention.value,
        output.dense,
        layer.intermediate.dense,
        layer.output.dense,
    )
    activation = getattr(attention.config, "hidden_act", None)
    return activation == "gelu" and all(type(each) is nn.Linear for each in linear)


def _forward(layer: Any, own: Callable[..., Tensor], states: Tensor, *positional: Any, **options: Any) -> Tensor:
    if options.get("cu_seq_lens_q") is None or states.dtype == torch.float32:
        return own(states, *positional, **options)
    return fused_states(layer, states, **options)


def fused_states(
    layer: Any, states: Tensor, *, cu_seq_lens_q: Tensor, max_length_q: int, tiles: AttentionTiles | None, **_: Any
) -> Tensor:
    """Return what one of LAYERS makes of states [1, T, d]; options are those of `packed_attention`."""
    attention, inner, outer = layer.attention.self, layer.attention.output, layer.output
    attention_dropout, dropout = (each.dropout.p if layer.training else 0.0 for each in (attention, outer))
    packed = PackedAttention(cu_seq_lens_q, max_length_q, tiles, attention.scaling, attention_dropout)
    settings = (attention.num_attention_heads, dropout, outer.LayerNorm.eps)
    modules = (
        attention.query, attention.key, attention.value, inner.dense, inner.LayerNorm,
        layer.intermediate.dense, outer.dense, outer.LayerNorm,
    )  # fmt: skip
    parameters = [each for module in modules for each in (module.weight, module.bias)]
    out: Tensor = _FusedLayer.apply(states.squeeze(0).contiguous(), packed, settings, *parameters)
    return out.unsqueeze(0)
