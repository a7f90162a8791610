"""Memory of the loss besides its input: normalized views, their gradients, tiles."""

import pytest
import torch

from bali_ds.losses.contrastive import contrastive_loss
from bali_ds.losses.contrastive.positives import _BATCH_BYTES
from bench.peers.memory import PeakBytes


@pytest.mark.parametrize("kind", ["ntxent", "clip"])
@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_peak_live_bytes(kind, kernels):
    pairs, width, tile = 2000, 256, 128
    queries, keys = (torch.randn(pairs, width).requires_grad_() for _ in range(2))
    ids = torch.arange(pairs)
    with PeakBytes() as memory:
        contrastive_loss(
            queries, keys, 10.0, query_concept_ids=ids, key_concept_ids=ids, kind=kind, tile_size=tile, kernels=kernels
        )
    # Of a batch of positives: one side's features and their products, both float32; each side has half of the views
    # whose float64 features take _BATCH_BYTES.
    vectors, positives = 250 * 2 * pairs, 2 * _BATCH_BYTES // 4
    assert memory.peak <= 4 * pairs * width * 4 + 8 * tile * tile * 4 + vectors + positives
