"""The second way to large batches: exact, dropout replayed, and never with one chunk's gradient alone."""

import pytest
import torch
from torch import nn

from bali_ds.losses.contrastive import contrastive_loss
from bali_ds.losses.gradient_cache import backward_through_chunks, engine_backward
from tests.losses.rounding import rounding

IDS = torch.arange(24) % 17


def encoder(dropout: float) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Dropout(dropout), nn.Linear(12, 5))


def loss(queries, keys):
    return contrastive_loss(queries, keys, 8.0, query_ids=IDS, key_ids=IDS)


@pytest.mark.parametrize("sizes", [(24,), (8, 8, 8), (3, 20, 1)])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_equals_the_whole_batch_at_once(sizes, dropout):
    model, inputs = encoder(dropout), torch.randn(24, 2, 6, generator=torch.Generator().manual_seed(1))
    chunks = inputs.split(sizes)

    def encode(chunk):
        return model(chunk[:, 0]), model(chunk[:, 1])

    torch.manual_seed(7)
    outputs = [encode(chunk) for chunk in chunks]
    whole = loss(*(torch.cat(parts) for parts in zip(*outputs, strict=True)))
    want = torch.autograd.grad(whole, list(model.parameters()))
    torch.manual_seed(7)
    value = backward_through_chunks(encode, chunks, loss, lambda surrogate, _last: surrogate.backward())
    torch.testing.assert_close(value, whole.detach())
    for parameter, gradient in zip(model.parameters(), want, strict=True):
        assert (parameter.grad - gradient).norm() <= rounding(8.0) * gradient.norm()


class Engine:
    """Stands for an engine that keeps what the last backward pass before a boundary left, as ZeRO 1 and 2 do."""

    def __init__(self) -> None:
        self.boundaries = []

    def set_gradient_accumulation_boundary(self, boundary):
        self.boundaries.append(boundary)

    def backward(self, surrogate):
        surrogate.backward()


def test_an_engine_hears_which_chunk_is_the_last():
    model, engine = encoder(0.0), Engine()
    chunks = torch.randn(24, 6).split(8)
    backward_through_chunks(
        lambda chunk: (model(chunk), chunk[:, :5]), chunks, lambda q, k: loss(q, k), engine_backward(engine)
    )
    assert engine.boundaries == [False, False, True]


def test_the_pattern_that_keeps_only_the_last_chunk_is_refused():
    with pytest.raises(ValueError, match="engine_backward"):
        backward_through_chunks(lambda chunk: (chunk,), [torch.ones(1)], torch.sum, Engine().backward)
