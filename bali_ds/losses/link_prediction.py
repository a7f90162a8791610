"""Facts told by the vectors of their two concepts."""

import math

import torch
from torch import Tensor, nn


class LinkPrediction(nn.Module):
    """Cross-entropy of the other concept of a fact among those of all facts of the micro-batch.

    The score of (head, relation, tail), with relation embeddings of its own, is by kind

    - "distmult" (Yang et al., ICLR 2015): the sum of h * r * t;
    - "transe" (Bordes et al., NIPS 2013): -|h + r - t|;
    - "rotate" (Sun et al., ICLR 2019): -|h * exp(i r) - t|, the halves of a vector being real and imaginary part,

    with Euclidean distances, so that all pairs are one matrix product. Relation ids of both directions have embeddings,
    so either concept of a fact is predicted from the other.

    Args:
        kind: as above.
        width: size d of the vectors, even for "rotate".
        num_relations: relation ids, both directions together.
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
        """Return the score of every head and relation with every tail, float32 [F, T].

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
        turned = torch.cat([real * cosine - imaginary * sine, real * sine + imaginary * cosine], dim=1)
        return -torch.cdist(turned, tails)

    def forward(self, nodes: Tensor, facts: Tensor) -> tuple[Tensor, int]:
        """Return the summed cross-entropy and the number of facts.

        Args:
            nodes: float [N, d].
            facts: int64 [4, F]: head node, relation, tail node, tail concept. Another fact's tail that is the same
                concept is no wrong answer; F may be 0.
        """
        heads, relations, tails, concepts = facts
        scores = self.scores(nodes[heads], relations, nodes[tails])
        own = torch.eye(len(concepts), dtype=torch.bool, device=concepts.device)
        wrong = (concepts[:, None] != concepts[None, :]) | own
        scores = scores.masked_fill(~wrong, -torch.inf)
        return (scores.logsumexp(dim=1) - scores.diagonal()).sum(), int(facts.shape[1])
