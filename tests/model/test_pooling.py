import math

import pytest
import torch

from bali_ds.model.pooling import MentionPooling, mean_of_inner_tokens, segment_mean
from tests.packs import random_pack


def test_segment_mean_keeps_every_token_of_every_mention():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(9, 5, generator=generator)
    # three mentions of one concept, (0, 1), (4, 5, 6) and (8), and one of another, (2, 3, 7)
    rows = torch.tensor([0, 1, 4, 5, 6, 8, 2, 3, 7])
    views = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1])
    means = segment_mean(values[rows], views, 3)
    torch.testing.assert_close(means[0], (values[0] + values[1] + values[4] + values[5] + values[6] + values[8]) / 6)
    torch.testing.assert_close(means[1], (values[2] + values[3] + values[7]) / 3)
    assert means[2].eq(0).all()


def test_segment_mean_sums_half_precision_in_full():
    values = torch.full((4096, 1), 1.001, dtype=torch.bfloat16)
    mean = segment_mean(values, torch.zeros(4096, dtype=torch.long), 1)
    torch.testing.assert_close(mean, values[:1].float())


def test_mean_of_inner_tokens_leaves_out_special_tokens():
    hidden = torch.arange(8, dtype=torch.float32)[:, None]
    means = mean_of_inner_tokens(hidden, random_pack(3, 5))
    torch.testing.assert_close(means, torch.tensor([[1.0], [5.0]]))


def test_a_sequence_of_special_tokens_alone_gives_zeros_and_finite_gradients():
    hidden = torch.randn(2, 3, requires_grad=True)
    means = mean_of_inner_tokens(hidden, random_pack(2))
    means.sum().backward()
    assert means.eq(0).all()
    assert hidden.grad.eq(0).all()


@pytest.mark.parametrize("kind", ["mean", "first", "attention"])
def test_mentions_are_pooled_as_written_out(kind):
    torch.manual_seed(0)
    pooling, values = MentionPooling(kind, 5), torch.randn(7, 5)
    pooled = pooling(values, torch.tensor([0, 0, 0, 1, 2, 2, 2]), 3)
    for number, rows in enumerate((values[:3], values[3:4], values[4:])):
        if kind == "mean":
            expected = sum(rows) / len(rows)
        elif kind == "first":
            expected = rows[0]
        else:
            scores = [math.exp(float(row @ pooling.score.weight[0])) for row in rows]
            expected = sum(score * row for score, row in zip(scores, rows, strict=True)) / sum(scores)
        torch.testing.assert_close(pooled[number], expected)
    nothing = pooling(values[:0], torch.zeros(0, dtype=torch.long), 0)
    assert nothing.shape == (0, 5)
