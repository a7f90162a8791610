"""Encoders over packed sequences against each sequence alone, with the plain attention of transformers."""

from copy import deepcopy
from dataclasses import replace
from functools import wraps
from typing import NamedTuple

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForMaskedLM

from bali_ds.model.length_buckets import buckets_of_packs
from bali_ds.model.packed_attention import packed_attention
from bali_ds.model.packed_encoder import first_position
from bali_ds.model.text_encoder import TextEncoder
from tests.packs import random_pack, rows_of, states_one_by_one

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
DISTILBERT = {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48, "vocab_size": 50}
ESM = {"pad_token_id": 0, "mask_token_id": 4}
WINDOW = {"local_attention": 16, "cls_token_id": 2, "sep_token_id": 3}
FAMILIES = {
    "bert": (0, "Bert", SIZES),
    "roberta": (2, "Roberta", SIZES | {"max_position_embeddings": 70, "pad_token_id": 1}),
    "xlm-r": (6, "XLMRoberta", SIZES | {"max_position_embeddings": 70, "pad_token_id": 5}),
    "electra": (0, "Electra", SIZES | {"embedding_size": 16}),
    "distilbert": (0, "DistilBert", DISTILBERT),
    "albert": (0, "Albert", SIZES | {"embedding_size": 16}),
    "modernbert": (0, "ModernBert", SIZES | SPECIAL | WINDOW),
    "eurobert": (0, "EuroBert", SIZES | SPECIAL | {"num_key_value_heads": 4}),
    "esm": (0, "Esm", SIZES | ESM | {"position_embedding_type": "rotary"}),
    "esm-absolute": (1, "Esm", SIZES | ESM),
    "esm-token-dropout": (None, "Esm", SIZES | ESM | {"token_dropout": True}),
    "nomic-bert": (0, "NomicBert", SIZES),
    "mpnet": (None, "MPNet", SIZES),
    "deberta-v2": (None, "DebertaV2", SIZES | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "convbert": (None, "ConvBert", SIZES | {"embedding_size": 32}),
}
PACKED = [name for name, (first, *_) in FAMILIES.items() if first is not None]
BUCKETS_PER_PACK = 6


class Models(NamedTuple):
    """A text encoder and the plain model that it was made from.

    Attributes:
        text: without a head, in evaluation.
        plain: with the same weights and eager attention.
        first: the number of the first position that is expected.
        family: the name of the architecture.
    """

    text: TextEncoder
    plain: nn.Module
    first: int | None
    family: str


def models_of(family):
    first, architecture, values = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(**values)
    model = AutoModelForMaskedLM.from_config(config).eval()
    for parameter in model.parameters():  # biases and norms, too, so that every weight counts
        parameter.data += 0.05 * torch.randn(parameter.shape)
    plain = deepcopy(model)
    plain.set_attn_implementation("eager")
    text = TextEncoder(model.base_model, nn.Identity(), first_position=first_position(model))
    return Models(text, plain.base_model, first, family)


@pytest.fixture(params=FAMILIES)
def models(request):
    return models_of(request.param)


@pytest.fixture
def packs():
    """Lengths that are not ascending from pack to pack, more than there are buckets, one of a single token."""
    torch.manual_seed(1)
    first, second = [2, 3, 5, 5, 7, 11, 13, 17, 40], [2, 2, 6, 30, 31]
    return [random_pack(*first), random_pack(*second), random_pack(4), random_pack(1, 9)]


def gradients(encoder, states):
    encoder.zero_grad(set_to_none=True)
    (states * torch.randn(states.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    return {name: parameter.grad for name, parameter in encoder.named_parameters() if parameter.grad is not None}


def test_states_and_gradients_are_those_of_each_sequence_alone(models, packs):
    assert models.text.first_position == models.first
    if models.family == "convbert":  # its convolutions read padding: only a bucket for each length has none
        packs = [random_pack(2, 5, 5, 9, 13), random_pack(4, 4, 30)]
    packs[0].input_ids[-4:] = 4  # masks
    states = models.text.hidden_states(packs)
    assert [len(each) for each in states] == [len(packed.input_ids) for packed in packs]
    expected = states_one_by_one(models.plain, *packs)
    torch.testing.assert_close(torch.cat(states), expected, atol=1e-5, rtol=1e-5)
    found, wanted = gradients(models.text.encoder, torch.cat(states)), gradients(models.plain, expected)
    assert found.keys() == wanted.keys()
    whole = torch.stack([gradient.norm() for gradient in wanted.values()]).norm()
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-6 * whole, name


def test_no_token_of_one_sequence_reaches_another(models, packs):
    changed = packs[0].input_ids.clone()
    begin, end = packs[0].offsets[6:8].tolist()
    changed[begin:end] = (changed[begin:end] + 7) % 44 + 6
    others = [replace(packs[0], input_ids=changed), *packs[1:]]
    with torch.no_grad():
        before, after = (torch.cat(models.text.hidden_states(each)) for each in (packs, others))
    different = (before != after).any(dim=1)
    assert different[begin:end].all()
    assert not different[:begin].any()
    assert not different[end:].any()


def test_the_number_of_calls_does_not_depend_on_the_sequences(models, packs):
    """Each call has a gradient, too: sharded weights are gathered again on the way back."""
    forward, backward = [], []

    def called(_module, _inputs, output):
        forward.append(1)
        output.last_hidden_state.register_hook(lambda _gradient: backward.append(1))

    models.text.encoder.register_forward_hook(called)
    alone, several = random_pack(2), random_pack(3, 3)
    for own in (packs, [alone, several], [alone]):
        forward.clear()
        backward.clear()
        gradients(models.text.encoder, torch.cat(models.text.hidden_states(own)))
        expected = BUCKETS_PER_PACK * len(own) if models.first is None else 1
        assert len(forward) == len(backward) == expected
    found = gradients(models.text.encoder, models.text.hidden_states([alone])[0])
    wanted = gradients(models.plain, states_one_by_one(models.plain, alone))
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("family", PACKED)
def test_the_encoder_reads_all_tokens_as_one_row_without_padding(family, packs):
    models, seen = models_of(family), []
    models.text.encoder.register_forward_pre_hook(lambda _m, _a, given: seen.append(given), with_kwargs=True)
    models.text.hidden_states(packs)
    [given] = seen
    assert given["input_ids"].tolist() == [[token for packed in packs for row in rows_of(packed) for token in row]]
    assert given.get("attention_mask") is None


@pytest.mark.parametrize("family", PACKED)
def test_padded_rows_with_a_mask_are_read_as_before(family):
    """As the exported model is, and any other code that calls it."""
    models = models_of(family)
    ids, mask = torch.randint(6, 50, (3, 40)), torch.arange(40) < torch.tensor([[40], [25], [3]])
    ids[~mask] = models.plain.config.pad_token_id
    with torch.no_grad():
        for valid in (mask, torch.ones_like(mask)):
            inputs = {
                "input_ids": ids if valid is mask else torch.randint(6, 50, (3, 40)),
                "attention_mask": valid.long(),
            }
            found, expected = (each(**inputs).last_hidden_state for each in (models.text.encoder, models.plain))
            torch.testing.assert_close(found[valid], expected[valid], atol=1e-5, rtol=1e-5)


def test_an_encoder_that_reads_packed_sequences_otherwise_gets_buckets():
    """One that numbers positions itself looks as if it could read them."""
    models = models_of("bert")
    model = models.plain
    forward = model.forward

    @wraps(forward)
    def numbered(*args, **kwargs):
        return forward(*args, **kwargs | {"position_ids": None})

    model.forward = numbered
    model.set_attn_implementation("sdpa")
    model.train()
    assert first_position(model) is None
    assert model.config._attn_implementation == "sdpa"
    assert model.training


@pytest.mark.parametrize("padded", [False, True])
def test_attention_weights_are_dropped_in_their_share_and_scaled(padded):
    """With unit vectors for values, the result is the weights themselves."""
    torch.manual_seed(3)
    heads, share, lengths = 8, 0.3, [11, 14, 20, 20]
    packed = random_pack(*lengths)
    query, key = (torch.randn(1, heads, sum(lengths), 16) for _ in range(2))
    value = torch.cat([torch.eye(20)[:length] for length in lengths]).expand(1, heads, -1, -1)
    buckets = buckets_of_packs([packed], 1 if padded else 3)
    weights = torch.cat(
        [
            nn.functional.pad((q @ k.transpose(1, 2) / 4).softmax(-1), (0, 20 - q.shape[1]))
            for q, k in zip(query[0].split(lengths, dim=1), key[0].split(lengths, dim=1), strict=True)
        ],
        dim=1,
    ).transpose(0, 1)
    for module in (nn.Identity().eval(), nn.Identity().train()):
        values, _ = packed_attention(module, query, key, value, None, dropout=share, buckets=buckets)
        kept = values[0] != 0
        if not module.training:
            torch.testing.assert_close(values[0], weights)
            continue
        torch.testing.assert_close(values[0][kept], weights[kept] / (1 - share))
        count = heads * sum(length**2 for length in lengths)
        sigma = (count * share * (1 - share)) ** 0.5
        assert abs(int(kept.sum()) - count * (1 - share)) < 4 * sigma
