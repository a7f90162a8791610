import math

import pytest
import torch
from torch.nn import functional as F

from bali_ds.model.graph_encoders import GraphEncoder

KINDS = ("gatv2", "graphsage", "compgcn")


def slow_attention(layer, nodes, sources, targets, features, _relations):
    """GATv2 with edge features written out edge by edge: e = a . LeakyReLU(W h_u + W h_v + W_e r)."""
    attention = layer.attention
    heads, width = attention.heads, attention.out_channels
    projected = attention.lin_l(nodes).view(-1, heads, width)
    edges = attention.lin_edge(features).view(-1, heads, width)
    rows = []
    for node in range(len(nodes)):
        incoming = [edge for edge in range(len(targets)) if targets[edge] == node]
        per_head = []
        for head in range(heads):
            scores = []
            for edge in incoming:
                inner = projected[sources[edge], head] + projected[node, head] + edges[edge, head]
                scores.append((attention.att[0, head] * F.leaky_relu(inner, 0.2)).sum())
            weights = torch.softmax(torch.stack(scores), 0)
            per_head.append(
                sum(weight * projected[sources[edge], head] for weight, edge in zip(weights, incoming, strict=True))
            )
        rows.append(torch.cat(per_head) + attention.bias)
    return torch.stack(rows)


def slow_sage(layer, nodes, sources, targets, _features, _relations):
    """GraphSAGE node by node: W_1 mean(h_u) + b + W_2 h_v; a node without neighbors has a mean of zero."""
    neighbor, own = layer.convolution.lin_l, layer.convolution.lin_r
    rows = []
    for node in range(len(nodes)):
        incoming = [nodes[u] for u, v in zip(sources, targets, strict=True) if v == node and u != node]
        mean = sum(incoming) / len(incoming) if incoming else torch.zeros(nodes.shape[1])
        rows.append(neighbor.weight @ mean + neighbor.bias + own.weight @ nodes[node])
    return torch.stack(rows)


def slow_composition(layer, nodes, sources, targets, features, relations):
    """CompGCN message by message: each direction has a third of the matrix, and a mean of its own."""
    width = nodes.shape[1]
    matrices = layer.combine.weight.split(width, dim=1)
    rows = []
    for node in range(len(nodes)):
        row = layer.combine.bias
        for direction, matrix in enumerate(matrices):
            composed = [
                nodes[u] * (layer.relation.weight @ features[edge])
                for edge, (u, v, r) in enumerate(zip(sources, targets, relations, strict=True))
                if v == node and (0 if r < 3 else 1 if r < 6 else 2) == direction
            ]
            if composed:
                row = row + matrix @ (sum(composed) / len(composed))
        rows.append(row)
    return torch.stack(rows)


SLOW = {"gatv2": slow_attention, "graphsage": slow_sage, "compgcn": slow_composition}


def slow_layer(kind, layer, nodes, *edges):
    update = SLOW[kind](layer, layer.norm(nodes), *edges)
    gelu = update * 0.5 * (1 + torch.erf(update / math.sqrt(2)))
    return nodes + layer.scale * gelu


def star(num_neighbors, first=0):
    center = torch.full((num_neighbors,), first)
    neighbors = torch.arange(num_neighbors) + first + 1
    return torch.stack([torch.cat([neighbors, center]), torch.cat([center, neighbors])])


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def encoder(kind):
    torch.manual_seed(0)
    return GraphEncoder(8, 6, kind=kind, layers=2, heads=2, dropout=0.0).eval()


def test_layers_equal_the_formula_written_out(kind, encoder):
    nodes = torch.randn(6, 8)
    edge_index = torch.cat([star(3), star(1, first=4)], dim=1)
    relations = torch.tensor([0, 1, 5, 3, 4, 2, 0, 3])
    expected = nodes
    loops = torch.arange(6)
    sources, targets = torch.cat([edge_index, loops.expand(2, -1)], dim=1)
    with_loops = torch.cat([relations, torch.full((6,), 6)])
    features = encoder.relations.weight[with_loops] if encoder.relations else None
    for layer in encoder.layers:
        expected = slow_layer(kind, layer, expected, sources, targets, features, with_loops)
    torch.testing.assert_close(encoder(nodes, edge_index, relations), expected)


def test_concepts_of_stars_differ_and_neighbors_and_relations_matter(kind, encoder):
    nodes = torch.randn(8, 8)
    edge_index = torch.cat([star(3), star(3, first=4)], dim=1)
    relations = torch.zeros(12, dtype=torch.long)
    vectors = encoder(nodes, edge_index, relations)
    assert (vectors[0] - vectors[4]).abs().max() > 0.1
    changed = nodes.clone()
    changed[1, 0] += 1
    assert (encoder(changed, edge_index, relations)[0] - vectors[0]).abs().max() > 1e-4
    relations_matter = (encoder(nodes, edge_index, relations + 1)[0] - vectors[0]).abs().max() > 1e-4
    assert relations_matter == (kind != "graphsage")


def test_isolated_concepts_are_not_constant(encoder):
    nodes = torch.randn(2, 8)
    nothing = torch.zeros(2, 0, dtype=torch.long)
    vectors = encoder(nodes, nothing, nothing[0])
    assert (vectors[0] - vectors[1]).abs().max() > 0.1


def test_no_nodes_give_no_vectors_and_zero_gradients(encoder):
    nothing = torch.zeros(2, 0, dtype=torch.long)
    encoder(torch.zeros(0, 8), nothing, nothing[0]).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.eq(0).all(), name


def test_every_parameter_gets_a_gradient(encoder):
    encoder(torch.randn(6, 8), star(5), torch.tensor([0, 1, 2, 3, 4, 3, 4, 5, 0, 1])).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def test_a_hub_of_thousands_of_neighbors_stays_finite(encoder):
    vectors = encoder(torch.randn(4001, 8), star(4000), torch.zeros(8000, dtype=torch.long))
    assert vectors.isfinite().all()


def test_width_must_divide_by_heads_where_there_are_heads():
    with pytest.raises(ValueError, match="does not divide"):
        GraphEncoder(7, 2, layers=1, heads=2, dropout=0.0)
    GraphEncoder(7, 2, kind="compgcn", layers=1, heads=2, dropout=0.0)
