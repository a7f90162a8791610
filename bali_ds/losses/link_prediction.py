"""Link prediction: the tail of a fact is ranked among the tails of other facts."""

import math

import torch
from torch import Tensor, nn


class LinkPrediction(nn.Module):
    """Cross-entropy of the tail of each fact among the tails of all facts of the micro-batch.

    The score of (head h, relation r, tail t), with learned relation embeddings, is by kind

    - "distmult" (Yang et al., ICLR 2015): the sum of h * r * t;
    - "transe" (Bordes et al., NIPS 2013): -|h + r - t|;
    - "rotate" (Sun et al., ICLR 2019): -|h * exp(i r) - t|, a vector's halves being its real and imaginary parts,

    with Euclidean distances, so that the scores of all pairs take one matrix product. Both directions of a relation
    have an embedding, so either concept of a fact is predicted from the other.

    Args:
        kind: one of these.
        width: size d of the vectors, even for "rotate".
        num_relations: number of relation ids, both directions together.
    """

    def __init__(self, kind: str, width: int, num_relations: int) -> None:
        super().__init__()
        self.kind = kind
        self.relations = nn.Embedding(num_relations, width // 2 if kind == "rotate" else width)
        if kind == "rotate":
            nn.init.uniform_(self.relations.weight, -math.pi, math.pi)
        else:
            nn.init.normal_(self.relations.weight, std=width**-0.5)

    def scores(self, heads: Tensor, relations: Tensor, tails: Tensor) -> Tensor:
        """Return the score of each (head, relation) with every tail, float32 [F, T].

        Args:
            heads: float [F, d].
            relations: int64 [F].
            tails: float [T, d].
        """
        heads, tails, embedded = heads.float(), tails.float(), self.relations(relations).float()
        if self.kind == "distmult":
            return (heads * embedded) @ tails.T
        if self.kind == "transe":
            return -torch.cdist(heads + embedded, tails)
        real, imaginary = heads.chunk(2, dim=1)
        cosine, sine = embedded.cos(), embedded.sin()
        rotated = torch.cat([real * cosine - imaginary * sine, real * sine + imaginary * cosine], dim=1)
        return -torch.cdist(rotated, tails)

    def forward(self, nodes: Tensor, facts: Tensor) -> tuple[Tensor, int]:
        """Return the cross-entropy summed over facts, float32 scalar, and the number of facts.

        Args:
            nodes: float [N, d], vectors of the graph's nodes.
            facts: int64 [4, F]: head node, relation, tail node, tail concept id; F may be 0. Tails of other facts are
                negatives unless they are the same concept.
        """
        heads, relations, tails, concept_ids = facts
        scores = self.scores(nodes[heads], relations, nodes[tails])
        own = torch.eye(len(concept_ids), dtype=torch.bool, device=concept_ids.device)
        candidates = (concept_ids[:, None] != concept_ids[None, :]) | own
        scores = scores.masked_fill(~candidates, -torch.inf)
        return (scores.logsumexp(dim=1) - scores.diagonal()).sum(), int(facts.shape[1])
