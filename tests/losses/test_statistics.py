import math

import pytest
import torch

from bali_ds.losses.view_statistics import alignment, retrieval_at_1, uniformity


def test_alignment_is_the_squared_distance_of_directions():
    x = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    assert alignment(x, 5 * x) == pytest.approx(0)
    assert alignment(x, -x) == pytest.approx(4)
    assert alignment(x, x.flip(0)) == pytest.approx(2)


def test_uniformity_of_few_points_by_hand():
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    pairs = [math.exp(-2 * 2), math.exp(-2 * 2), math.exp(-2 * 4)]
    assert uniformity(x) == pytest.approx(math.log(sum(pairs) / 3), rel=1e-6)
    assert uniformity(torch.ones(2000, 3)) == pytest.approx(0, abs=1e-5)


def test_retrieval_counts_any_key_of_the_id():
    keys = torch.eye(3)
    queries = torch.tensor([[1.0, 0.1, 0.0], [0.0, 0.1, 1.0], [1.0, 0.9, 0.0], [0.0, 0.0, 1.0]])
    ids = torch.tensor([7, 8, 9])
    assert retrieval_at_1(queries, keys, torch.tensor([7, 9, 8, 9]), ids) == pytest.approx(0.75)
