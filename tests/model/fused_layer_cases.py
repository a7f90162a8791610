"""BERT's layer as one operation against transformers' own, on a GPU or in Triton's interpreter.

Run by test_fused_layer.py.
"""

import pytest
import torch
import triton
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel, BertConfig, CamembertConfig, ElectraConfig, RobertaConfig, XLMRobertaConfig

from bali_ds.model.build_model import transformer_layers
from bali_ds.model.fused_kernels import column_sums, gelu_gradients, residual_norm, residual_norm_gradients
from bali_ds.model.fused_layer import fuse_layers, fused_states
from bali_ds.model.packed_attention import attention_arguments
from bali_ds.model.packed_encoder import encode_packed, first_position
from tests.packs import random_pack, states_one_by_one

DEVICE = torch.device("cpu" if triton.knobs.runtime.interpret else "cuda")
LENGTHS = (3, 5, 17, 30, 64)
SHAPE = {
    "vocab_size": 60, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 80,
    "max_position_embeddings": 80,
}  # fmt: skip
# rounding of results; half precision also rounds everything between the products
ERRORS = {torch.float32: 5e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def arguments(lengths=LENGTHS):
    return attention_arguments([random_pack(*lengths).to(DEVICE)], on_gpu=True)


def layer_of(dtype, *, dropout=0.0, seed=0):
    torch.manual_seed(seed)
    config = BertConfig(**SHAPE, hidden_dropout_prob=dropout, attention_probs_dropout_prob=0.0)
    layer = transformer_layers(AutoModel.from_config(config))[0]
    for parameter in layer.parameters():  # so that weights and biases of norms matter
        nn.init.normal_(
            parameter, 1.0 if parameter.ndim == 1 and parameter is layer.output.LayerNorm.weight else 0, 0.3
        )
    return layer.to(DEVICE, dtype).train()


def reference(layer, states, lengths=LENGTHS):
    """transformers' layer in float64, each sequence alone."""
    return torch.cat([layer(part[None])[0] for part in states.split(lengths)])


def assert_alike(found, expected, allowed, name=""):
    error = (found.double() - expected).norm() / expected.norm()
    assert error <= allowed, f"{name} is off by {error:.1e}"


def assert_gradients_alike(layer, exact, allowed):
    # the gradient by the bias of keys is 0 but for rounding
    largest = max(parameter.grad.norm() for parameter in exact.parameters())
    for (name, parameter), true in zip(layer.named_parameters(), exact.parameters(), strict=True):
        error = (parameter.grad.double() - true.grad).norm() / max(true.grad.norm(), largest / 10)
        assert error <= allowed, f"{name} is off by {error:.1e}"


@pytest.mark.parametrize("dtype", ERRORS)
def test_states_and_gradients_are_those_of_the_layer(dtype):
    layer, exact = layer_of(dtype), layer_of(torch.float32).double().requires_grad_()
    exact.load_state_dict({name: value.double() for name, value in layer.state_dict().items()})
    states = torch.randn(sum(LENGTHS), SHAPE["hidden_size"], device=DEVICE).to(dtype).requires_grad_()
    true_states = states.detach().double().requires_grad_()
    found, expected = fused_states(layer, states[None], **arguments())[0], reference(exact, true_states)
    assert found.dtype == dtype
    assert_alike(found, expected, ERRORS[dtype])
    upstream = torch.randn_like(found)
    found.backward(upstream)
    expected.backward(upstream.double())
    assert_alike(states.grad, true_states.grad, 2 * ERRORS[dtype])
    assert_gradients_alike(layer, exact, 2 * ERRORS[dtype])


class Factors(nn.Module):
    """Multiplies by given factors in place of a dropout."""

    def __init__(self, factors):
        super().__init__()
        self.factors = factors
        self.p = 0.0

    def forward(self, states):
        return states * self.factors


def test_gradients_have_the_masks_of_the_forward_pass():
    share, lengths = 0.4, (40,)
    given = arguments(lengths)
    layer = layer_of(torch.float32, dropout=share)
    exact = layer_of(torch.float32).double()
    exact.load_state_dict({name: value.double() for name, value in layer.state_dict().items()})
    shape = (lengths[0], SHAPE["hidden_size"])
    torch.manual_seed(5)
    seeds = torch.randint(2**62, (3, 1), device=DEVICE)
    norm = layer.output.LayerNorm
    zeros, ones = torch.zeros(shape, device=DEVICE), torch.ones(shape, device=DEVICE)
    factors = [residual_norm(ones, zeros, norm.weight, norm.bias, seed, 1e-12, share)[0] for seed in seeds[1:]]
    for each in factors:
        assert abs((each == 0).double().mean().item() - share) < 4 * (share * (1 - share) / each.numel()) ** 0.5
        torch.testing.assert_close(each[each > 0], torch.full_like(each[each > 0], 1 / (1 - share)))
    assert not torch.equal(*factors)
    exact.attention.output.dropout, exact.output.dropout = (Factors(each.double()) for each in factors)

    states = torch.randn(shape, device=DEVICE).requires_grad_()
    true_states = states.detach().double().requires_grad_()
    torch.manual_seed(5)
    found, expected = fused_states(layer, states[None], **given)[0], reference(exact, true_states, lengths)
    assert_alike(found, expected, 5e-6)
    upstream = torch.randn_like(found)
    found.backward(upstream)
    expected.backward(upstream.double())
    assert_alike(states.grad, true_states.grad, 1e-5)
    assert_gradients_alike(layer, exact, 1e-5)


def test_recomputation_repeats_masks_and_evaluation_has_none():
    lengths = (3, 9)
    layer, given = layer_of(torch.float32, dropout=0.5), arguments(lengths)
    layer.attention.self.dropout.p = 0.5
    states = torch.randn(1, sum(lengths), SHAPE["hidden_size"], device=DEVICE).requires_grad_()

    def gradient(run):
        torch.manual_seed(1)
        return torch.autograd.grad(run(lambda: fused_states(layer, states, **given)).square().sum(), states)[0]

    kept, recomputed = gradient(lambda run: run()), gradient(lambda run: checkpoint(run, use_reentrant=False))
    assert torch.equal(kept, recomputed)
    layer.eval()
    alone = torch.cat([layer(part)[0] for part in states.split(lengths, dim=1)])
    assert_alike(fused_states(layer, states, **given)[0], alone.double(), 5e-6)


def test_frozen_inputs_and_weights_get_no_gradients():
    lengths = (3, 9)
    layer, given = layer_of(torch.float32), arguments(lengths)
    states = torch.randn(1, sum(lengths), SHAPE["hidden_size"], device=DEVICE)
    fused_states(layer, states, **given).sum().backward()
    assert states.grad is None
    assert all(parameter.grad is not None for parameter in layer.parameters())
    layer.requires_grad_(False)
    assert not fused_states(layer, states, **given).requires_grad


@pytest.mark.parametrize("shape", [(1, 16), (37, 48), (130, 600)])
def test_sums_over_tokens(shape):
    """Against float64, also where rows and columns do not fill the blocks of a program."""
    torch.manual_seed(0)
    values, before = torch.randn(shape, device=DEVICE), 3 * torch.randn(shape, device=DEVICE)
    assert_alike(column_sums(values), values.double().sum(0), 1e-6)
    exact = before.double().requires_grad_()
    nn.functional.gelu(exact).backward(values.double())
    found, sums = gelu_gradients(values, before)
    assert found is values
    assert_alike(found, exact.grad, 1e-6)
    assert_alike(sums, exact.grad.sum(0), 1e-5)


@pytest.mark.parametrize("shape", [(1, 16), (37, 48), (130, 300)])
def test_norm_of_a_residual(shape):
    torch.manual_seed(0)
    count, width = shape
    seed = torch.tensor([1], device=DEVICE)
    update, residual, upstream = (torch.randn(shape, device=DEVICE) for _ in range(3))
    weight, bias = torch.randn(width, device=DEVICE), torch.randn(width, device=DEVICE)
    leaves = [each.double().requires_grad_() for each in (update, residual, weight, bias)]
    expected = nn.functional.layer_norm(leaves[0] + leaves[1], (width,), leaves[2], leaves[3], 1e-5)
    expected.backward(upstream.double())
    total, out = residual_norm(update, residual, weight, bias, seed, 1e-5, 0.0)
    assert_alike(out, expected, 1e-6)
    found = residual_norm_gradients(upstream, total, weight, seed, 1e-5, 0.0)
    assert found.update is found.residual
    for mine, true in zip((found.update, found.residual, found.weight, found.bias), leaves, strict=True):
        assert_alike(mine, true.grad, 1e-5)
    assert_alike(found.update_sum, leaves[0].grad.sum(0), 1e-4 * count)


@pytest.mark.parametrize("config", [BertConfig, RobertaConfig, XLMRobertaConfig, CamembertConfig, ElectraConfig])
def test_encoders_read_packs_through_it(config):
    torch.manual_seed(0)
    names = {"embedding_size": SHAPE["hidden_size"]} if config is ElectraConfig else {}
    model = AutoModel.from_config(config(**SHAPE, **names, pad_token_id=1)).eval()
    packs = [random_pack(3, 9, vocab_size=60), random_pack(5, vocab_size=60)]
    expected = states_one_by_one(model, *packs)
    first = first_position(model)
    assert fuse_layers(transformer_layers(model))
    model.to(DEVICE, torch.float16)
    for layer in transformer_layers(model):  # the layers' own code must not run
        layer.attention.forward = None
    given = [pack.to(DEVICE) for pack in packs]
    found = encode_packed(model, given, first, on_gpu=True)
    assert_alike(found, expected.double(), ERRORS[torch.float16])


def test_other_layers_are_left_as_they_are():
    for changes in ({"hidden_act": "relu"}, {"is_decoder": True}):
        layers = transformer_layers(AutoModel.from_config(BertConfig(**SHAPE, **changes)))
        assert not fuse_layers(layers)
        assert "forward" not in vars(layers[0])
    layers = transformer_layers(AutoModel.from_config(BertConfig(**SHAPE)))
    layers[1].output.dense = nn.Sequential(layers[1].output.dense)
    assert not fuse_layers(layers)
    assert "forward" not in vars(layers[0])
