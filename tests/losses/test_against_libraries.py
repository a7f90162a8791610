"""The losses that BALI and SapBERT take from pytorch-metric-learning, against that library."""

import pytest
import torch
from pytorch_metric_learning.losses import MultiSimilarityLoss, NTXentLoss, SupConLoss
from pytorch_metric_learning.miners import TripletMarginMiner

from tests.losses import dense_contrastive as dense
from tests.losses.rounding import rounding
from tests.losses.test_contrastive import assert_close, evaluate, obtained

SCALE = 14.0
MINER = TripletMarginMiner(margin=0.2, type_of_triplets="all")


def theirs(name, views, labels, scale):
    if name == "ntxent":
        return NTXentLoss(1 / scale)(views, labels)
    alpha = {"multi_similarity": 2, "sapbert": 1}[name]
    return MultiSimilarityLoss(alpha=alpha, beta=scale, base=0.5)(views, labels, MINER(views, labels))


@pytest.mark.parametrize("name", ["ntxent", "multi_similarity", "sapbert"])
@pytest.mark.parametrize("zipf", [False, True])
def test_equals_the_library(name, zipf):
    data = dense.views(21, 90, 70, 32, concepts=50, zipf=zipf)
    labels = torch.cat(data[2:])
    want = evaluate(
        lambda q, k, _scale, _bias: theirs(name, torch.cat([q, k]), labels, SCALE),
        data[0].double(), data[1].double(), SCALE,
    )  # fmt: skip
    got = obtained(name, data, SCALE, tile_size=32)
    assert_close([*got[:3], want[3], want[4]], want, rounding(SCALE))


def test_supcon_is_the_mean_of_the_library_over_both_directions():
    """The library takes one direction at a time, anchors against a reference set."""
    queries, keys, query_ids, key_ids = dense.views(22, 60, 60, 16, concepts=40)
    data = (queries.double(), keys.double(), query_ids, key_ids)
    loss = SupConLoss(1 / SCALE)
    want = evaluate(
        lambda q, k, _scale, _bias: (
            loss(q, query_ids, ref_emb=k, ref_labels=key_ids) + loss(k, key_ids, ref_emb=q, ref_labels=query_ids)
        ) / 2,
        data[0], data[1], SCALE,
    )  # fmt: skip
    got = obtained("supcon", data, SCALE)
    assert_close([*got[:3], want[3], want[4]], want, rounding(SCALE))
