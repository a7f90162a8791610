"""Scores of all concepts of a dictionary for queries: by names, graph views, remembered mentions and spelling."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bali_ds.inference.concept_dictionary import ConceptDictionary
from bali_ds.inference.mention_memory import Memory
from bali_ds.inference.spelling import SpellingIndex

Vectors = NDArray[np.float32]

_SCORE_BYTES = 256 * 2**20
# The scores of 64 queries by 40,000 concepts stay in a CPU's last-level cache.
_MOST_QUERIES_ON_CPU, _MOST_QUERIES = 64, 256


@dataclass(frozen=True)
class Scoring:
    """Weights of what a concept is scored by.

    Attributes:
        context: share of the mention read in its text in the query; the rest is the mention by itself.
        graph: share of the concept's graph view; the rest is its most similar name.
        memory: bonus of a remembered mention, in cosines, times the share of its string's mentions that have its
            concept; None uses no memory.
        spelling: weight of the cosine of character n-grams, added to that of the vectors.
    """

    context: float = 0.0
    graph: float = 0.0
    memory: float | None = None
    spelling: float = 0.0


class ConceptScorer:
    """Scores concepts by the most similar of their names, and what else is there.

    Args:
        dictionary: the names and their C concepts.
        names: float32 [names, d], unit vectors.
        graph_views: float32 [C, d], unit vectors; rows of zeros for concepts that the graph lacks.
        memory: remembered mentions.
        spelling: character n-grams of the names.
        device: where scores are computed.
    """

    def __init__(
        self,
        dictionary: ConceptDictionary,
        names: Vectors,
        *,
        graph_views: Vectors | None = None,
        memory: Memory | None = None,
        spelling: SpellingIndex | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self._names = self._tensor(names)
        name_of, bounds = dictionary.names_by_concept
        self._name_of, self._names_of = self._tensor(name_of), self._tensor(np.diff(bounds))
        if graph_views is not None:
            self._graph_views = self._tensor(graph_views)
            self._unknown = torch.where(self._graph_views.any(dim=1), 0.0, torch.nan)
        self._memory, self._spelling = memory, spelling
        if memory is not None:
            order = np.argsort(memory.concepts, kind="stable")
            self._mentions_of = self._tensor(np.bincount(memory.concepts, minlength=len(dictionary.cuis)))
            self._shares = self._tensor(memory.shares[order, None])
            self._alone = self._tensor(memory.alone[order])
            self._context = None if memory.context is None else self._tensor(memory.context[order])

    @property
    def queries_at_once(self) -> int:
        """How many queries to score together."""
        most = _MOST_QUERIES_ON_CPU if self.device.type == "cpu" else _MOST_QUERIES
        return max(1, min(most, _SCORE_BYTES // (4 * len(self._names_of))))

    def scores(
        self, alone: Tensor, context: Tensor | None, scoring: Scoring, strings: list[str]
    ) -> tuple[Tensor, Tensor]:
        """Return n queries, float32 [n, d], and the score of each concept for them, float32 [n, C].

        Args:
            alone: float32 [n, d], the mentions by themselves.
            context: float32 [n, d], the mentions in their texts; None where `scoring.context` is 0.
            scoring: the weights.
            strings: the n mentions, for their spelling.
        """
        query = mixed(alone, context, scoring.context)
        found = self.by_names(query, scoring.spelling, strings)
        if scoring.memory is not None:
            remembered = self.memory_similarity(alone, context, scoring.context)
            found = torch.maximum(found, self.by_memory(remembered, scoring.memory))
        if scoring.graph:
            found = with_graph(found, self.by_graph(query), scoring.graph)
        return query, found

    def by_names(self, query: Tensor, spelling: float, strings: list[str]) -> Tensor:
        """Return the score of each concept's most similar name, float32 [n, C]; -inf for a concept without names."""
        similarity = self.similarity(query)
        if spelling:
            similarity += spelling * self.by_spelling(strings)
        return self.largest_of_names(similarity)

    def similarity(self, query: Tensor) -> Tensor:
        """Return the inner product of each name with each query, float32 [names, n]."""
        return self._names @ query.T

    def by_spelling(self, strings: list[str]) -> Tensor:
        """Return the similarity in spelling of each name to each string, float32 [names, n]."""
        assert self._spelling is not None
        return self._spelling.cosines(strings, self.device).T

    def largest_of_names(self, similarity: Tensor) -> Tensor:
        """Return the largest value among the names of each concept, float32 [n, C], from values [names, n]."""
        return _largest(similarity.index_select(0, self._name_of), self._names_of)

    def memory_similarity(self, alone: Tensor, context: Tensor | None, share: float) -> Tensor:
        """Return the inner product of each remembered mention with each query, float32 [m, n]."""
        assert self._memory is not None
        similarity = self._alone @ alone.T
        if context is not None and self._context is not None:
            similarity = (1 - share) * similarity + share * (self._context @ context.T)
        return similarity

    def by_memory(self, similarity: Tensor, bonus: float) -> Tensor:
        """Return the score of each concept's most similar remembered mention, float32 [n, C]; -inf without any."""
        return _largest(similarity + bonus * self._shares, self._mentions_of)

    def by_graph(self, query: Tensor) -> Tensor:
        """Return the inner product of each query with each graph view, float32 [n, C]; NaN for a concept without."""
        return query @ self._graph_views.T + self._unknown

    def _tensor(self, values: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)


def _largest(values: Tensor, counts: Tensor) -> Tensor:
    """Return the largest of consecutive rows, `counts` of them for each of C concepts, -inf for none.

    Args:
        values: float32 [rows, n]; along rows, reducing is an order of magnitude faster than along columns.
        counts: int64 [C].

    Returns:
        float32 [n, C].
    """
    largest = torch.segment_reduce(values, "max", lengths=counts, axis=0, unsafe=True, initial=-torch.inf)
    return largest.T.contiguous()


def mixed(alone: Tensor, context: Tensor | None, share: float) -> Tensor:
    """Return queries of which a share is read in context, float32 [n, d]."""
    return alone if context is None or not share else (1 - share) * alone + share * context


def with_graph(found: Tensor, views: Tensor, share: float) -> Tensor:
    """Return scores of which a share comes from graph views, float32 [n, C].

    Args:
        found: float32 [n, C], the scores without.
        views: float32 [n, C], those of the graph views; where they are NaN, the other scores stay.
        share: in 0..1; at 1 the other scores do not count.
    """
    return torch.add(found, graph_gain(found, views), alpha=share)


def graph_gain(found: Tensor, views: Tensor) -> Tensor:
    """Return what is added to scores if graph views have a share of 1, float32 [n, C]; 0 where they are NaN.

    Args:
        found: float32 [n, C], the scores without.
        views: float32 [n, C], those of the graph views.
    """
    return torch.where(views.isnan(), 0.0, views - found)
