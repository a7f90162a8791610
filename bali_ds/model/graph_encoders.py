"""Graph encoders over ego graphs of concepts: residual layers around one of several updates.

A new kind is a subclass of `GraphLayer`, a line of `LAYERS`, and its name among the kinds of `GraphEncoderConfig`.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch_geometric.nn import GATv2Conv, SAGEConv

from bali_ds.config import recipe
from bali_ds.errors import InputError
from bali_ds.model.pooling import segment_mean

# A fresh layer starts near the identity, so that a concept's vector starts as the vector of its name.
INITIAL_LAYER_SCALE = 0.1
# The standard deviation of BERT's fresh weights.
INITIAL_EMBEDDING = 0.02


class Messages(NamedTuple):
    """E messages between N nodes and N self-loops, the same in every layer.

    Attributes:
        edge_index: int64 [2, E + N], source and target of each message; self-loops come last.
        features: float [E + N, d], the embedding of each message's relation; None where the kind uses no relations.
        directions: int64 [E + N], 0 along the relation as the graph names it, 1 against it, 2 from a node to itself.
    """

    edge_index: torch.Tensor
    features: torch.Tensor | None
    directions: torch.Tensor


class GraphEncoder(nn.Module):
    """Graph encoder of any kind: node vectors from node features, edges and relations.

    Each layer is h + scale * dropout(GELU(update(LayerNorm(h)))). Every node also has a self-loop, with a relation of
    its own: without self-loops, neighbors would be without effect in a second layer, and every concept would get the
    same vector.

    Args:
        width: size d of node features and outputs; for "gatv2" divisible by `heads`.
        num_relations: relation ids, both directions together; r and r + num_relations / 2 are inverses.
        kind: "gatv2", "graphsage" or "compgcn".
        layers: number of layers.
        heads: attention heads of each layer.
        dropout: of the update, and of the attention.
        num_concepts: concepts with learned embeddings as node features, `concepts`, whose last row is for hidden
            concepts; 0 where node features are name vectors.
    """

    def __init__(
        self,
        width: int,
        num_relations: int,
        *,
        layers: int,
        heads: int,
        dropout: float,
        kind: str = "gatv2",
        num_concepts: int = 0,
    ) -> None:
        super().__init__()
        layer = LAYERS[kind]
        self.relations = nn.Embedding(num_relations + 1, width) if layer.uses_relations else None
        self.layers = nn.ModuleList(layer(width, heads, dropout) for _ in range(layers))
        self.num_relations = num_relations
        self.concepts = nn.Embedding(num_concepts + 1, width) if num_concepts else None
        if self.concepts is not None:
            nn.init.normal_(self.concepts.weight, std=INITIAL_EMBEDDING)

    def forward(self, nodes: torch.Tensor, edge_index: torch.Tensor, edge_relations: torch.Tensor) -> torch.Tensor:
        """Return node vectors.

        Args:
            nodes: float [N, d], N may be 0.
            edge_index: int64 [2, E], source and target of each message, without self-loops.
            edge_relations: int64 [E].

        Returns:
            float [N, d].
        """
        own = torch.arange(nodes.shape[0], device=nodes.device)
        relations = torch.cat([edge_relations, torch.full_like(own, self.num_relations)])
        messages = Messages(
            torch.cat([edge_index, own.expand(2, -1)], dim=1),
            self.relations(relations) if self.relations is not None else None,
            relations // max(self.num_relations // 2, 1),
        )
        for layer in self.layers:
            nodes = layer(nodes, messages)
        return nodes


class LinearizedGraph(nn.Module):
    """Placeholder without weights: the text encoder reads the neighborhood as text, so there is no graph encoder."""


def build_graph_encoder(
    settings: recipe.GraphEncoderConfig, width: int, num_relations: int, num_concepts: int
) -> GraphEncoder | LinearizedGraph:
    """Return a newly initialized graph encoder for a graph with these numbers of relations and concepts.

    Args:
        settings: of the recipe.
        width: size of node features and outputs.
        num_relations: relation ids, both directions together.
        num_concepts: concepts of the graph, for learned embeddings.
    """
    if settings.kind == "linearized":
        return LinearizedGraph()
    return GraphEncoder(
        width,
        num_relations,
        kind=settings.kind,
        layers=settings.layers,
        heads=settings.heads,
        dropout=settings.dropout,
        num_concepts=num_concepts if settings.names == "learned" else 0,
    )


class GraphLayer(nn.Module, ABC):
    """Residual layer around the update of one kind of graph encoder.

    Attributes:
        uses_relations: whether the update reads embeddings of relations.
    """

    uses_relations = True

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.build(width, heads, dropout)
        self.scale = nn.Parameter(torch.full((width,), INITIAL_LAYER_SCALE))
        self.dropout = dropout

    def forward(self, nodes: torch.Tensor, messages: Messages) -> torch.Tensor:
        """Return the nodes' vectors after this layer, [N, d]."""
        update = self.update(self.norm(nodes), messages)
        return nodes + self.scale * F.dropout(F.gelu(update), self.dropout, self.training)

    @abstractmethod
    def build(self, width: int, heads: int, dropout: float) -> None:
        """Create the update's own modules."""

    @abstractmethod
    def update(self, nodes: torch.Tensor, messages: Messages) -> torch.Tensor:
        """Return the aggregated messages of every node, [N, d]."""


class _Attention(GraphLayer):
    """GATv2 of Brody, Alon and Yahav (ICLR 2022), one weight for both ends, the relation in the score of its edge."""

    def build(self, width: int, heads: int, dropout: float) -> None:
        if width % heads:
            raise InputError(f"graph_encoder.heads: width {width} does not divide by {heads} heads")
        self.attention = GATv2Conv(
            width,
            width // heads,
            heads=heads,
            dropout=dropout,
            edge_dim=width,
            share_weights=True,
            add_self_loops=False,
        )

    def update(self, nodes: torch.Tensor, messages: Messages) -> torch.Tensor:
        return self.attention(nodes, messages.edge_index, messages.features)


class _Sage(GraphLayer):
    """GraphSAGE of Hamilton, Ying and Leskovec (NIPS 2017), mean aggregator: W_1 mean(h_u) + W_2 h_v."""

    uses_relations = False

    def build(self, width: int, heads: int, dropout: float) -> None:  # noqa: ARG002
        self.convolution = SAGEConv(width, width)

    def update(self, nodes: torch.Tensor, messages: Messages) -> torch.Tensor:
        # the self-loop is the second term
        edges = messages.edge_index.shape[1] - nodes.shape[0]
        return self.convolution(nodes, messages.edge_index[:, :edges])


class _Composition(GraphLayer):
    """CompGCN of Vashishth, Sanyal, Nitin and Talukdar (ICLR 2020) with composition by product.

    Sum over the directions l of W_l mean(h_u * V z_r), where z is the embedding of the message's relation: messages
    along facts, against them and of the node to itself have a matrix each, and V is the layer's own.
    """

    def build(self, width: int, heads: int, dropout: float) -> None:  # noqa: ARG002
        self.relation = nn.Linear(width, width, bias=False)
        self.combine = nn.Linear(3 * width, width)

    def update(self, nodes: torch.Tensor, messages: Messages) -> torch.Tensor:
        sources, targets = messages.edge_index
        composed = nodes[sources] * self.relation(messages.features)
        count, width = nodes.shape
        means = segment_mean(composed, 3 * targets + messages.directions, 3 * count)
        return self.combine(means.view(count, 3 * width).to(nodes.dtype))


LAYERS: dict[str, type[GraphLayer]] = {"gatv2": _Attention, "graphsage": _Sage, "compgcn": _Composition}
