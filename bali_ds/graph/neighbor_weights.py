"""Neighbors drawn by weight, through filters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bali_ds.errors import InputError
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.graph.neighbor_sampling import Drawn, nothing_drawn, read_drawn, rows_of
from bali_ds.randomness import Keys, derive, permute, uniform

_LEAST_WORTH = 4  # one more than training draws by default


@dataclass(frozen=True)
class EdgeFilter:
    """Which facts may be drawn, and how often.

    Attributes:
        relations: names of the relations to draw, in either direction; () draws all.
        sources: names of the sources whose facts to draw; () draws all.
        weights: weight of a fact by the name of its relation, 1 where it is not named; 0 draws none.
        largest_degree: neighbors with more neighbors than this are not drawn; None draws them.
        held_out: pairs of concept ids, int [n, 2]; no fact between the two of a pair is drawn, in either direction.
        most_looked_at: of a concept with more facts than this, that many are looked at, chosen uniformly.
        thinned: of each concept, draw no more facts than their weights are worth: the sum of the weights divided by
            the largest, at least four. A uniform draw from what was drawn then follows the weights too.
    """

    relations: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    largest_degree: int | None = None
    held_out: NDArray[Any] | None = None
    most_looked_at: int = 1024
    thinned: bool = False


class WeightedSampler:
    """Draws facts that pass a filter, in proportion to the weight of their relation, without replacement.

    Facts are ranked by u ** (1 / weight) with u uniform (Efraimidis and Spirakis, 2006, "Weighted random sampling with
    a reservoir"), in logarithms.

    Raises:
        InputError: the filter names a relation or a source that the graph does not have, or a negative weight.
    """

    def __init__(self, graph: KnowledgeGraph, kept: EdgeFilter) -> None:
        self.graph = graph
        self._kept = kept
        names = graph.relations + graph.inverse_relations
        _refuse_strangers(graph, "relation", (*kept.relations, *kept.weights), names)
        _refuse_strangers(graph, "source", kept.sources, graph.sources)
        if not all(0 <= weight < np.inf for weight in kept.weights.values()):
            raise InputError("weights of relations: a weight is negative or no number; 0 leaves a relation out")
        if kept.largest_degree is not None and kept.largest_degree < 0:
            raise InputError(f"largest degree {kept.largest_degree}: must not be negative")
        by_relation = np.ones(graph.num_relations)
        for relation in range(graph.num_relations):
            both = {names[relation], names[relation + graph.num_relations]}
            if kept.relations and not both & set(kept.relations):
                by_relation[relation] = 0
            for name in both & set(kept.weights):
                by_relation[relation] *= kept.weights[name]
        by_source = np.array([not kept.sources or name in kept.sources for name in graph.sources], bool)
        by_direction = np.concatenate([by_relation, by_relation])
        self._by_kind = by_direction[graph.entries.relations] * by_source[graph.entries.sources]
        self._held_out = self._pair_codes(np.asarray(kept.held_out)) if kept.held_out is not None else None

    def sample(self, concepts: ArrayLike, fan_out: int, keys: Keys) -> Drawn:
        """Draw as `sample_neighbors` does, by weight; a concept with fewer facts that pass gives all of them."""
        starts, degrees = rows_of(self.graph, concepts)
        if not self.graph.num_edges or not starts.size:
            return nothing_drawn(starts.size, fan_out)
        looked_at = np.minimum(degrees, self._kept.most_looked_at)
        row = np.repeat(np.arange(starts.size), looked_at)
        position = np.arange(row.size) - np.repeat(np.cumsum(looked_at) - looked_at, looked_at)
        long = degrees[row] > looked_at[row]
        position[long] = permute(position[long], degrees[row[long]], derive(keys[row[long]], "looked at"))
        entries = starts[row] + position
        weights = self._entry_weights(np.asarray(concepts, np.int64)[row], entries)
        passing = weights > 0
        row, position, weights = row[passing], position[passing], weights[passing]
        draws = uniform(derive(keys[row], "weighted", position))
        with np.errstate(divide="ignore"):
            scores = np.log(draws) / weights
        most = np.full(starts.size, fan_out)
        if self._kept.thinned:
            most = np.minimum(most, _worth(row, weights, starts.size))
        order = np.lexsort((-scores, row))
        row, position = row[order], position[order]
        rank = np.arange(row.size) - np.searchsorted(row, row)
        chosen = np.full((starts.size, fan_out), -1, np.int64)
        first = rank < most[row]
        chosen[row[first], rank[first]] = position[first]
        return read_drawn(self.graph, chosen, starts)

    def _entry_weights(self, concepts: NDArray[np.int64], entries: NDArray[np.int64]) -> NDArray[np.float64]:
        graph = self.graph
        neighbors, kinds = graph.entries.read(entries)
        weights = self._by_kind[kinds]
        if self._kept.largest_degree is not None:
            degrees = rows_of(graph, neighbors)[1]
            weights[degrees > self._kept.largest_degree] = 0
        if self._held_out is not None and self._held_out.size:
            codes = self._codes(concepts, neighbors)
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


def _worth(row: NDArray[np.int64], weights: NDArray[np.float64], rows: int) -> NDArray[np.int64]:
    """Return how many facts of the largest weight all facts of each row amount to, int64 [rows]."""
    largest = np.zeros(rows)
    np.maximum.at(largest, row, weights)
    total = np.bincount(row, weights, rows)
    # A little less than the quotient, so that rounding of equal weights does not make one more of them.
    worth = np.ceil(total / np.where(largest > 0, largest, 1) - 1e-9).astype(np.int64)
    return np.maximum(worth, _LEAST_WORTH)


def _refuse_strangers(graph: KnowledgeGraph, what: str, asked: Sequence[str], known: Sequence[str]) -> None:
    for name in asked:
        if name not in known:
            raise InputError(f"{what} {name}: {graph.path} has none of this name; it has {', '.join(known)[:200]}")
