import math

import pytest
import torch
from torch_geometric.nn.kge import DistMult, TransE

from bali_ds.losses.link_prediction import LinkPrediction

KINDS = ("distmult", "transe", "rotate")


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def prediction(kind):
    torch.manual_seed(0)
    return LinkPrediction(kind, 6, 4)


def slow_score(kind, head, relation, tail):
    head, relation, tail = head.tolist(), relation.tolist(), tail.tolist()
    if kind == "distmult":
        return sum(h * r * t for h, r, t in zip(head, relation, tail, strict=True))
    if kind == "transe":
        return -math.sqrt(sum((h + r - t) ** 2 for h, r, t in zip(head, relation, tail, strict=True)))
    half = len(head) // 2
    rotated = [
        complex(head[i], head[half + i]) * complex(math.cos(relation[i]), math.sin(relation[i])) for i in range(half)
    ]
    return -math.sqrt(sum(abs(rotated[i] - complex(tail[i], tail[half + i])) ** 2 for i in range(half)))


def test_scores_are_those_of_the_formulas(kind, prediction):
    heads, tails, relations = torch.randn(3, 6), torch.randn(4, 6), torch.tensor([3, 0, 2])
    scores = prediction.scores(heads, relations, tails)
    for row in range(3):
        for column in range(4):
            embedded = prediction.relations.weight[relations[row]]
            expected = slow_score(kind, heads[row], embedded, tails[column])
            assert scores[row, column].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("kind", "library"), [("distmult", DistMult), ("transe", TransE)])
def test_scores_are_those_of_torch_geometric(kind, library):
    nodes = torch.nn.functional.normalize(torch.randn(5, 6))  # its TransE normalizes
    model = library(5, 4, 6, **({"p_norm": 2.0} if library is TransE else {}))
    model.node_emb.weight.data.copy_(nodes)
    prediction = LinkPrediction(kind, 6, 4)
    prediction.relations.weight.data.copy_(model.rel_emb.weight)
    relations = torch.tensor([0, 1, 2, 3, 0])
    expected = model(torch.arange(5), relations, torch.tensor([1, 2, 3, 4, 0]))
    scores = prediction.scores(nodes, relations, nodes[[1, 2, 3, 4, 0]]).diagonal()
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)


def test_loss_is_the_cross_entropy_among_tails_of_other_concepts(kind, prediction):
    nodes = torch.randn(8, 6)
    facts = torch.tensor([[0, 0, 2, 3], [1, 2, 0, 3], [4, 5, 6, 7], [40, 50, 40, 70]])
    total, count = prediction(nodes, facts)
    expected, embedded = 0.0, prediction.relations.weight
    for row in range(4):
        negatives = [column for column in range(4) if facts[3, column] != facts[3, row]]
        scores = {
            column: slow_score(kind, nodes[facts[0, row]], embedded[facts[1, row]], nodes[4 + column])
            for column in [row, *negatives]
        }
        expected -= math.log(math.exp(scores[row]) / sum(math.exp(score) for score in scores.values()))
    assert count == 4
    assert total.item() == pytest.approx(expected, rel=1e-5)


def test_without_facts_the_loss_is_zero_and_gradients_exist(prediction):
    total, count = prediction(torch.zeros(0, 6), torch.zeros(4, 0, dtype=torch.long))
    total.backward()
    assert (total.item(), count) == (0.0, 0)
    assert prediction.relations.weight.grad.eq(0).all()


def test_it_learns_a_relation(kind):
    torch.manual_seed(0)
    prediction = LinkPrediction(kind, 6, 1)
    nodes = torch.randn(12, 6).requires_grad_()
    facts = torch.stack([torch.arange(6), torch.zeros(6, dtype=torch.long), torch.arange(6, 12), torch.arange(6)])
    optimizer = torch.optim.Adam([nodes, *prediction.parameters()], lr=0.1)
    for _ in range(150):
        total, count = prediction(nodes, facts)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert total.item() / count < 0.1
