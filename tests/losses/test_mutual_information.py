import math

import pytest
import torch

from bali_ds.losses.mutual_information import duality_gap, info_nce_bound


def test_bound_is_log_n_minus_the_cross_entropy_of_the_own_key():
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(5, 4, generator=generator), torch.randn(4, 4, generator=generator)
    own = [3, 0, 1, 2, 0]
    bound, cap, count = info_nce_bound(queries, keys, torch.tensor(own), torch.tensor([5.0])).tolist()
    expected = 0.0
    for query, row in zip(queries, own, strict=True):
        weights = [math.exp(5 * float(torch.cosine_similarity(query, key, dim=0))) for key in keys]
        expected += math.log(4) + math.log(weights[row] / sum(weights))
    assert bound == pytest.approx(expected, rel=1e-5)
    assert cap == pytest.approx(5 * math.log(4), rel=1e-5)
    assert count == 5


def test_the_bound_is_below_the_information_of_few_concepts():
    """Views that tell four equally likely concepts and nothing else share log 4 nats, however often each occurs."""
    concepts = torch.arange(4).repeat(16)
    views = torch.eye(4)[concepts]
    bound, _, count = info_nce_bound(views, views, torch.arange(64), torch.tensor(100.0)).tolist()
    assert bound / count == pytest.approx(math.log(4), rel=1e-5)


def test_identical_views_reach_the_maximum():
    views, own = torch.eye(8), torch.arange(8)
    bound, cap, _ = info_nce_bound(views, views, own, torch.tensor(100.0)).tolist()
    assert bound == pytest.approx(cap, rel=1e-5)
    assert cap == pytest.approx(8 * math.log(8), rel=1e-5)


def test_constant_views_have_a_bound_of_zero():
    own = torch.arange(8)
    same = torch.ones(8, 3)
    assert info_nce_bound(same, same, own, torch.tensor(10.0))[0].item() == pytest.approx(0, abs=1e-5)
    nothing = info_nce_bound(same[:0], same[:0], own[:0], torch.tensor(10.0))
    assert nothing.tolist() == [0, 0, 0]


def test_duality_gap_is_zero_if_bayes_rule_holds():
    text, graph, joint = (torch.tensor([-3.0, -5.0]), torch.tensor([-2.0, -1.0]), torch.tensor([-4.0, -5.5]))
    assert duality_gap(text, graph, joint - text, joint - graph).tolist() == [0, 0]
    assert duality_gap(text, graph, joint - text + 2, joint - graph).tolist() == [4, 4]
