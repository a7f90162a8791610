"""Which facts of a concept are stored with the passages that mention it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from numpy.typing import ArrayLike

from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.graph.neighbor_sampling import EdgeFilter, SampledNeighbors, WeightedSampler, sample_neighbors
from bali_ds.randomness import Keys


@dataclass(frozen=True)
class NeighborChoice:
    """Which facts are stored, and how often; uniformly drawn from all facts by default.

    Attributes:
        weights: names of relations, of either direction, and the weight of their facts; 1 where a relation is not
            named, 0 stores none. A concept keeps no more facts than their weights are worth, so that training, which
            draws uniformly from what is stored, follows the weights.
        sources: the sources whose facts are stored; () stores those of all.
        largest_degree: concepts with more facts than this are not stored as neighbors; 0 stores them.
    """

    weights: tuple[tuple[str, float], ...] = ()
    sources: tuple[str, ...] = ()
    largest_degree: int = 0

    def describe(self) -> dict[str, Any]:
        """Return what is not as by default."""
        values = {"weights": dict(self.weights), "sources": list(self.sources), "largest_degree": self.largest_degree}
        return {name: value for name, value in values.items() if value}

    def sampler(self, graph: KnowledgeGraph) -> Callable[[ArrayLike, int, Keys], SampledNeighbors]:
        """Return a function of concepts, fan-out and keys as `sample_neighbors` is one, for this graph.

        Raises:
            InputError: the graph has no relation or source of a name, or a number is negative.
        """
        if not self.describe():
            return partial(sample_neighbors, graph)
        largest = self.largest_degree or None
        return WeightedSampler(graph, EdgeFilter((), self.sources, dict(self.weights), largest, thinned=True)).sample
