from functools import partial

import pytest
import torch
from torch import nn

from bali_ds.planning.activations import pass_memory


def test_a_chain_of_matrices_counts_by_hand():
    """Two 100 x 100 layers on [50, 100]: products, the sum, and gradients while they live."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(100, 100, bias=False), nn.Linear(100, 100, bias=False))
        inputs = torch.empty(50, 100)
    memory = pass_memory(model, lambda: model(inputs).sum())
    product, gradient = 50 * 100 * 4, 100 * 100 * 4
    # at the end of the backward pass: both gradients, the first product's gradient, at most one more product
    assert 2 * gradient + product <= memory.with_gradients <= 2 * gradient + 3 * product + 64
    assert memory.without_gradients <= 3 * product + 64
    assert all(parameter.grad is None for parameter in model.parameters())


def test_saved_tensors_decide_the_peak():
    with torch.device("meta"):
        layer = nn.Linear(10, 10)
        inputs = torch.empty(1000, 10)

    def run(depth):
        def forward():
            hidden = layer(inputs)
            for _ in range(depth):
                hidden = torch.tanh(hidden)
            return hidden.sum()

        return forward

    shallow, deep = (pass_memory(layer, run(depth)).without_gradients for depth in (3, 13))
    assert deep - shallow == 10 * 1000 * 10 * 4


def test_half_precision_takes_half():
    def peak(dtype):
        with torch.device("meta"):
            model = nn.Linear(64, 64, dtype=dtype)
            inputs = torch.empty(512, 64, dtype=dtype)
        return pass_memory(model, lambda: torch.tanh(model(inputs)).float().mean()).with_gradients

    assert peak(torch.bfloat16) < 0.8 * peak(torch.float32)


@pytest.mark.parametrize("fused", [False, True])
def test_fused_attention_keeps_no_scores(fused):
    n, heads, length, width = 4, 2, 256, 16

    def peak(size):
        with torch.device("meta"):
            query, key, value = (torch.empty(n, heads, size, width, requires_grad=True) for _ in range(3))
        attend = partial(nn.functional.scaled_dot_product_attention, query, key, value, dropout_p=0.1)
        return pass_memory(nn.Identity(), lambda: attend().sum(), fused_attention=fused).with_gradients

    grows = peak(2 * length) / peak(length)
    assert (1.9 < grows < 2.1) if fused else grows > 3.5
