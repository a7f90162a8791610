"""Neighbor sampling for many concepts at once, uniformly or by weight.

The sample of a concept depends on its own key alone, never on what else is in the batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bali_ds.errors import InputError
from bali_ds.graph.identifiers import split_vocabularies
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.randomness import Keys, choose, derive, permute, uniform

SampledNeighbors = tuple[NDArray[np.int32], NDArray[np.int32]]
"""Neighbors and relation ids, int32 [n, fan_out] each, -1 where a concept has no more neighbors."""
NeighborSampler = Callable[[ArrayLike, int, Keys], SampledNeighbors]
"""A function of (concept_ids, fan_out, keys), such as `sample_neighbors` for one graph."""

_FEWEST_STORED = 4  # one more than training samples by default


def sample_neighbors(graph: KnowledgeGraph, concept_ids: ArrayLike, fan_out: int, keys: Keys) -> SampledNeighbors:
    """Sample neighbors uniformly without replacement.

    Args:
        graph: the graph.
        concept_ids: int [n].
        fan_out: number of neighbors per concept; a concept with fewer yields all of them.
        keys: uint64 [n], one per concept.

    Returns:
        neighbors int32 [n, fan_out] and relations int32 [n, fan_out], the relation ids as read from the concept;
        both are -1 where there is no further neighbor.

    Raises:
        InputError: a concept id is not in the graph, or the graph is damaged.
    """
    starts, degrees = neighbor_ranges(graph, concept_ids)
    if not graph.num_edges or not starts.size:
        return _no_neighbors(starts.size, fan_out)
    return _read_neighbors(graph, choose(keys, degrees, fan_out), starts)


def neighbor_ranges(graph: KnowledgeGraph, concept_ids: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return start and length of each concept's adjacency list, both int64 [n], bounds checked.

    Raises:
        InputError: a concept id is not in the graph, or the graph is damaged.
    """
    rows = np.asarray(concept_ids, np.int64)
    if rows.size and not 0 <= rows.min() <= rows.max() < graph.num_concepts:
        raise InputError(
            f"{graph.path}: has {graph.num_concepts} concepts; concept ids {rows.min()} to {rows.max()} were requested"
        )
    starts = graph.edge_offsets.take(rows, mode="clip").astype(np.int64)
    degrees = graph.edge_offsets.take(rows + 1, mode="clip").astype(np.int64) - starts
    if rows.size and (starts.min() < 0 or degrees.min() < 0 or (starts + degrees).max() > graph.adjacency.size):
        raise InputError(f"{graph.path / 'edges.offsets'}.npy: is damaged; build the graph again")
    return starts, degrees


def _no_neighbors(rows: int, fan_out: int) -> SampledNeighbors:
    return np.full((rows, fan_out), -1, np.int32), np.full((rows, fan_out), -1, np.int32)


def _read_neighbors(graph: KnowledgeGraph, chosen: NDArray[np.int64], starts: NDArray[np.int64]) -> SampledNeighbors:
    """Return neighbors and relations at chosen positions of adjacency lists, int64 [n, fan_out], -1 for no position."""
    missing = chosen < 0
    neighbors, kinds = graph.adjacency.read(np.where(missing, 0, chosen + starts[:, None]))
    relations = graph.adjacency.relations.take(kinds)
    neighbors[missing] = relations[missing] = -1
    return neighbors, relations


@dataclass(frozen=True)
class EdgeFilter:
    """Which facts may be sampled, and with what weight.

    Attributes:
        relations: names of the relations to sample, in either direction; () allows all.
        sources: names of the sources whose facts to sample; () allows all.
        weights: weight of a fact by the name of its relation, 1 where it is not listed; 0 excludes the relation.
        largest_degree: neighbors of a higher degree are excluded; None excludes none.
        held_out: pairs of concept ids, int [n, 2]; facts between the two concepts of a pair are excluded, in either
            direction.
        most_facts_read: of a concept with more facts than this, so many are read, chosen uniformly.
        thinned: limit the sample of a concept to the sum of its facts' weights divided by the largest of them, at
            least four. A later uniform sample of the result then follows the weights too.
    """

    relations: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    largest_degree: int | None = None
    held_out: NDArray[Any] | None = None
    most_facts_read: int = 1024
    thinned: bool = False


class WeightedSampler:
    """Samples facts that pass a filter, without replacement and in proportion to the weight of their relation.

    Facts are ranked by u ** (1 / weight) with u uniform (Efraimidis and Spirakis, 2006, "Weighted random sampling with
    a reservoir"), in logarithms.

    Raises:
        InputError: the filter names a relation or a source that the graph does not have, or a weight is not a finite
            number of at least 0.
    """

    def __init__(self, graph: KnowledgeGraph, edge_filter: EdgeFilter) -> None:
        self.graph = graph
        self._filter = edge_filter
        names = graph.relations + graph.inverse_relations
        _check_names(graph, "relation", (*edge_filter.relations, *edge_filter.weights), names)
        _check_names(graph, "source", edge_filter.sources, graph.vocabularies)
        if not all(0 <= weight < np.inf for weight in edge_filter.weights.values()):
            raise InputError("weights of relations: a weight is negative or non-finite; 0 excludes a relation")
        if edge_filter.largest_degree is not None and edge_filter.largest_degree < 0:
            raise InputError(f"largest degree {edge_filter.largest_degree}: must not be negative")
        by_relation = np.ones(graph.num_relations)
        for relation in range(graph.num_relations):
            both = {names[relation], names[relation + graph.num_relations]}
            if edge_filter.relations and not both & set(edge_filter.relations):
                by_relation[relation] = 0
            for name in both & set(edge_filter.weights):
                by_relation[relation] *= edge_filter.weights[name]
        wanted = set(edge_filter.sources or graph.vocabularies)
        by_source = np.array([not wanted.isdisjoint(split_vocabularies(source)) for source in graph.sources], bool)
        by_direction = np.concatenate([by_relation, by_relation])
        self._by_kind = by_direction[graph.adjacency.relations] * by_source[graph.adjacency.sources]
        held_out = edge_filter.held_out
        self._held_out = self._pair_codes(np.asarray(held_out)) if held_out is not None else None

    def sample(self, concept_ids: ArrayLike, fan_out: int, keys: Keys) -> SampledNeighbors:
        """Sample as `sample_neighbors` does, by weight; a concept with fewer facts that pass yields all of them."""
        starts, degrees = neighbor_ranges(self.graph, concept_ids)
        if not self.graph.num_edges or not starts.size:
            return _no_neighbors(starts.size, fan_out)
        num_read = np.minimum(degrees, self._filter.most_facts_read)
        row = np.repeat(np.arange(starts.size), num_read)
        position = np.arange(row.size) - np.repeat(np.cumsum(num_read) - num_read, num_read)
        long = degrees[row] > num_read[row]
        position[long] = permute(position[long], degrees[row[long]], derive(keys[row[long]], "looked at"))
        weights = self._weights(np.asarray(concept_ids, np.int64)[row], starts[row] + position)
        passing = weights > 0
        row, position, weights = row[passing], position[passing], weights[passing]
        numbers = uniform(derive(keys[row], "weighted", position))
        with np.errstate(divide="ignore"):
            scores = np.log(numbers) / weights
        most = np.full(starts.size, fan_out)
        if self._filter.thinned:
            most = np.minimum(most, _weight_equivalents(row, weights, starts.size))
        order = np.lexsort((-scores, row))
        row, position = row[order], position[order]
        rank = np.arange(row.size) - np.searchsorted(row, row)
        chosen = np.full((starts.size, fan_out), -1, np.int64)
        first = rank < most[row]
        chosen[row[first], rank[first]] = position[first]
        return _read_neighbors(self.graph, chosen, starts)

    def _weights(self, concept_ids: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the weight of each fact, given its concept and its position in the adjacency lists."""
        graph = self.graph
        neighbors, kinds = graph.adjacency.read(positions)
        weights = self._by_kind[kinds]
        if self._filter.largest_degree is not None:
            degrees = neighbor_ranges(graph, neighbors)[1]
            weights[degrees > self._filter.largest_degree] = 0
        if self._held_out is not None and self._held_out.size:
            codes = self._codes(concept_ids, neighbors)
            found = np.minimum(np.searchsorted(self._held_out, codes), self._held_out.size - 1)
            weights[self._held_out[found] == codes] = 0
        return weights

    def _pair_codes(self, pairs: NDArray[Any]) -> NDArray[np.int64]:
        if pairs.ndim != 2 or pairs.shape[1] != 2:
            raise InputError(f"held-out facts: shape {pairs.shape}, must be [n, 2]")
        return np.unique(self._codes(pairs[:, 0], pairs[:, 1]))

    def _codes(self, first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.int64]:
        low, high = np.minimum(first, second), np.maximum(first, second)
        return low.astype(np.int64) * self.graph.num_concepts + high


def _weight_equivalents(row: NDArray[np.int64], weights: NDArray[np.float64], rows: int) -> NDArray[np.int64]:
    """Return how many facts of the largest weight all facts of each row amount to, int64 [rows]."""
    largest = np.zeros(rows)
    np.maximum.at(largest, row, weights)
    total = np.bincount(row, weights, rows)
    # Slightly below the quotient, so that rounding of equal weights does not add one.
    equivalents = np.ceil(total / np.where(largest > 0, largest, 1) - 1e-9).astype(np.int64)
    return np.maximum(equivalents, _FEWEST_STORED)


def _check_names(graph: KnowledgeGraph, what: str, wanted: Sequence[str], known: Sequence[str]) -> None:
    for name in wanted:
        if name not in known:
            raise InputError(f"{what} {name}: is not in {graph.path}; use one of {', '.join(known)[:200]}")
