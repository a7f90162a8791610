"""Encoders over packed sequences: all tokens in one call, or in length buckets where an architecture needs rows."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from bali_ds.data.batch import PackedSequences
from bali_ds.model.length_buckets import buckets_of_packs
from bali_ds.model.packed_attention import NAME, attention_arguments

_BUCKETS = 6  # calls of an encoder without packed attention, for each pack
_TOKEN_STEP = 64  # GPU kernels are fastest where the number of tokens is a multiple of this


def encode_packed(
    encoder: PreTrainedModel, packs: Sequence[PackedSequences], first_position: int, *, on_gpu: bool
) -> Tensor:
    """Return the hidden states of packs in one call, float [T, d], T tokens in all.

    Args:
        encoder: one with packed attention.
        packs: the sequences.
        first_position: the encoder's number of the first position.
        on_gpu: whether the encoder is on a GPU, or on the meta device in place of one.
    """
    count = sum(len(pack.input_ids) for pack in packs)
    if on_gpu and count % _TOKEN_STEP:
        packs = [*packs, _filler(-count % _TOKEN_STEP, packs[0].input_ids.device)]
    input_ids = torch.cat([pack.input_ids for pack in packs])
    rows = {"input_ids": input_ids, "position_ids": torch.cat([pack.positions for pack in packs]) + first_position}
    if "token_type_ids" in inspect.signature(encoder.forward).parameters:
        rows["token_type_ids"] = torch.zeros_like(input_ids)
    states: Tensor = encoder(
        **{name: row.unsqueeze(0) for name, row in rows.items()}, **attention_arguments(packs, on_gpu=on_gpu)
    ).last_hidden_state
    return states[0, :count]


def encode_in_buckets(encoder: PreTrainedModel, packs: Sequence[PackedSequences]) -> Tensor:
    """Return the hidden states of packs, float [T, d], in as many calls whatever their lengths."""
    pad = encoder.config.pad_token_id or 0
    input_ids = torch.cat([pack.input_ids for pack in packs])
    buckets = buckets_of_packs(packs, _BUCKETS)
    states = []
    for bucket, own in zip(buckets, input_ids.split([bucket.size for bucket in buckets]), strict=True):
        ids = bucket.unpack(own)
        mask = torch.ones_like(ids) if bucket.valid is None else bucket.valid.long()
        ids = ids if bucket.valid is None else ids.masked_fill(~bucket.valid, pad)
        states.append(bucket.pack(encoder(input_ids=ids, attention_mask=mask).last_hidden_state))
    shortest = input_ids[None, : int(packs[0].lengths[0])]
    for _ in range(_BUCKETS * len(packs) - len(buckets)):
        # sharded weights are gathered in every call: all ranks make equally many, with gradients of zero
        states.append(encoder(input_ids=shortest, attention_mask=torch.ones_like(shortest)).last_hidden_state[0])
    return torch.cat(states)[: len(input_ids)]


def _filler(count: int, device: torch.device) -> PackedSequences:
    """Return one sequence of zeros."""
    positions = torch.arange(count, device=device)
    offsets = torch.full((2,), count, device=device)
    offsets[0].zero_()
    return PackedSequences(torch.zeros_like(positions), positions, offsets, torch.tensor([count]))


def first_position(model: PreTrainedModel) -> int | None:
    """Give a model packed attention, and return its number of the first position; None where it cannot have it.

    The hidden states of a few sequences are compared with those of the model's own attention, except on the meta
    device.
    """
    encoder: Any = model.base_model
    own = model.config._attn_implementation
    if not getattr(encoder, "_supports_attention_backend", False):
        return None
    # RoBERTa and its kin number positions from the pad token on
    padding = getattr(position_embeddings(encoder), "padding_idx", None)
    first = 0 if padding is None else int(padding) + 1
    if model.device.type == "meta":
        model.set_attn_implementation(NAME)
        return first
    training = model.training
    model.eval()
    with torch.no_grad():
        probe = _probe(encoder)
        expected = encode_in_buckets(encoder, [probe])
        model.set_attn_implementation(NAME)
        same = _agrees(encoder, probe, first, expected)
    model.train(training)
    if same:
        return first
    model.set_attn_implementation(own)
    return None


def _probe(encoder: Any) -> PackedSequences:
    """Return a few sequences without padding, one of them masked where the architecture knows its mask token."""
    config, lengths = encoder.config, torch.tensor([3, 5, 8])
    positions = torch.cat([torch.arange(length) for length in lengths.tolist()])
    ids = torch.arange(len(positions)) % (config.vocab_size - 5) + 5
    ids[ids == (config.pad_token_id or 0)] = 4
    # ESM with token dropout scales a row by its share of masks
    mask = getattr(config, "mask_token_id", None)
    if mask is not None and mask < config.vocab_size:
        ids[-1] = mask
    return PackedSequences(ids, positions, F.pad(lengths.cumsum(0), (1, 0)), lengths)


def _agrees(encoder: PreTrainedModel, probe: PackedSequences, first: int, expected: Tensor) -> bool:
    try:
        return torch.allclose(encode_packed(encoder, [probe], first, on_gpu=False), expected, atol=1e-4)
    except (RuntimeError, TypeError, ValueError, IndexError):  # raised by models that insist on rows or masks
        return False


def position_embeddings(encoder: torch.nn.Module) -> torch.nn.Module | None:
    """Return the module with a learned embedding for each position, None without one."""
    found = [module for name, module in encoder.named_modules() if name.endswith("position_embeddings")]
    return found[0] if found else None
