"""The graph encoder: GATv2 over the stars of concepts and their neighbours."""

import torch
from torch import nn
from torch.nn import functional as F
from torch_geometric.nn import GATv2Conv

from bali_ds.errors import InputError

# A fresh layer starts near the identity, so that a concept's vector starts as the vector of its name.
INITIAL_LAYER_SCALE = 0.1


class GraphEncoder(nn.Module):
    """Attention over neighbours with relation embeddings as edge features.

    Each layer is h + scale * dropout(GELU(GATv2(LayerNorm(h)))), with GATv2 of Brody, Alon and Yahav (ICLR 2022),
    shared source and target weights, and the relation's embedding in the score of its edge. Every node
    attends to itself through a relation of its own: without it a second layer would see the neighbours of a star
    as empty and give every concept the same vector.

    Args:
        width: size d of node features and outputs; divisible by `heads`.
        num_relations: relation ids, both directions together.
        layers: number of layers.
        heads: attention heads of each layer.
        dropout: of the features between layers and of the attention.
    """

    def __init__(self, width: int, num_relations: int, *, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise InputError(f"graph_encoder.heads: width {width} does not divide by {heads} heads")
        self.relations = nn.Embedding(num_relations + 1, width)
        self.layers = nn.ModuleList(_Layer(width, heads, dropout) for _ in range(layers))
        self.self_relation = num_relations

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
        edge_index = torch.cat([edge_index, own.expand(2, -1)], dim=1)
        relations = torch.cat([edge_relations, torch.full_like(own, self.self_relation)])
        features = self.relations(relations)
        for layer in self.layers:
            nodes = layer(nodes, edge_index, features)
        return nodes


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = GATv2Conv(
            width,
            width // heads,
            heads=heads,
            dropout=dropout,
            edge_dim=width,
            share_weights=True,
            add_self_loops=False,
        )
        self.scale = nn.Parameter(torch.full((width,), INITIAL_LAYER_SCALE))
        self.dropout = dropout

    def forward(self, nodes: torch.Tensor, edge_index: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        update = self.attention(self.norm(nodes), edge_index, features)
        return nodes + self.scale * F.dropout(F.gelu(update), self.dropout, self.training)
