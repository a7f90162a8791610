import pytest
import torch
from torch_geometric.nn import DeepGraphInfomax

from bali_ds.losses.graph_infomax import GraphInfomax


def test_loss_is_that_of_torch_geometric():
    torch.manual_seed(0)
    real, corrupted = torch.randn(7, 5), torch.randn(7, 5)
    ours = GraphInfomax(5)
    theirs = DeepGraphInfomax(5, torch.nn.Identity(), lambda z, *_: z.mean(dim=0).sigmoid(), lambda *each: each)
    theirs.weight.data.copy_(ours.weight)
    total, count = ours(real, corrupted)
    expected = theirs.loss(real, corrupted, real.mean(dim=0).sigmoid())
    assert count == 7
    assert total.item() / count == pytest.approx(expected.item(), rel=1e-5)


def test_no_nodes_give_zero_and_a_gradient():
    ours = GraphInfomax(3)
    total, count = ours(torch.zeros(0, 3), torch.zeros(0, 3))
    total.backward()
    assert (total.item(), count) == (0.0, 0)
    assert ours.weight.grad.eq(0).all()
