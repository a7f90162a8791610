"""What the loss holds beside its input: unit views, their gradients, tiles."""

import pytest
import torch

from bali_ds.objective.contrastive import contrastive_loss
from bench.peers.memory import PeakBytes


@pytest.mark.parametrize("kind", ["ntxent", "clip"])
def test_peak_live_bytes(kind):
    pairs, width, tile = 2000, 256, 128
    queries, keys = (torch.randn(pairs, width).requires_grad_() for _ in range(2))
    ids = torch.arange(pairs)
    with PeakBytes() as memory:
        contrastive_loss(queries, keys, 10.0, query_ids=ids, key_ids=ids, kind=kind, tile=tile)
    vectors, strips = 250 * 2 * pairs, 64 * 64 * 8 * (2 * pairs / 64)
    assert memory.peak <= 4 * pairs * width * 4 + 8 * tile * tile * 4 + vectors + strips
