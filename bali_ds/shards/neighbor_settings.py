"""Which facts of a concept are stored with its passages."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.graph.neighbor_sampling import EdgeFilter, NeighborSampler, WeightedSampler, sample_neighbors


@dataclass(frozen=True)
class NeighborSettings:
    """Which facts of a concept are stored with its passages; by default a uniform sample of all facts.

    Attributes:
        weights: names of relations, in either direction, and the weight of their facts; 1 for other relations, 0 stores
            none. The number of stored facts of a concept is limited by their weights, so that training, which samples
            uniformly from the stored facts, follows the weights.
        sources: the sources whose facts are stored; () stores those of all.
        largest_degree: concepts of a higher degree are not stored as neighbors; 0 stores all.
    """

    weights: tuple[tuple[str, float], ...] = ()
    sources: tuple[str, ...] = ()
    largest_degree: int = 0

    def describe(self) -> dict[str, Any]:
        """Return the settings that differ from the defaults."""
        values = {"weights": dict(self.weights), "sources": list(self.sources), "largest_degree": self.largest_degree}
        return {name: value for name, value in values.items() if value}

    @classmethod
    def of_index(cls, index: dict[str, Any]) -> "NeighborSettings":
        """Return the settings that a shard set was built with, from its index."""
        values = index.get("neighbours", {})
        weights, sources = values.get("weights", {}), values.get("sources", ())
        return cls(tuple(weights.items()), tuple(sources), values.get("largest_degree", 0))

    def sampler(self, graph: KnowledgeGraph) -> NeighborSampler:
        """Return a function of (concept_ids, fan_out, keys), like `sample_neighbors`, for a graph.

        Raises:
            InputError: the graph lacks a named relation or source, or a number is negative.
        """
        if not self.describe():
            return partial(sample_neighbors, graph)
        largest = self.largest_degree or None
        return WeightedSampler(graph, EdgeFilter((), self.sources, dict(self.weights), largest, thinned=True)).sample
