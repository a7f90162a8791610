"""What the loss holds beside its input: unit views, their gradients, tiles."""

import pytest
import torch

from bali_ds.losses.contrastive import contrastive_loss
from bali_ds.losses.contrastive.positives import _BYTES
from bench.peers.memory import PeakBytes


@pytest.mark.parametrize("kind", ["ntxent", "clip"])
@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_peak_live_bytes(kind, kernels):
    pairs, width, tile = 2000, 256, 128
    queries, keys = (torch.randn(pairs, width).requires_grad_() for _ in range(2))
    ids = torch.arange(pairs)
    with PeakBytes() as memory:
        contrastive_loss(queries, keys, 10.0, query_ids=ids, key_ids=ids, kind=kind, tile=tile, kernels=kernels)
    # Of positives taken at a time: one side's features and what they are multiplied to, float32, each half of the
    # views whose features in float64 are _BYTES.
    vectors, positives = 250 * 2 * pairs, 2 * _BYTES // 4
    assert memory.peak <= 4 * pairs * width * 4 + 8 * tile * tile * 4 + vectors + positives
