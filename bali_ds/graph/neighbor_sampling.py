"""Neighbors drawn from a concept graph, many concepts at once.

What is drawn of a concept depends on its own key alone, never on what else is in the batch.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bali_ds.errors import InputError
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.randomness import Keys, choose

Drawn = tuple[NDArray[np.int32], NDArray[np.int32]]


def sample_neighbors(graph: KnowledgeGraph, concepts: ArrayLike, fan_out: int, keys: Keys) -> Drawn:
    """Draw neighbors uniformly without replacement.

    Args:
        graph: the graph.
        concepts: int [n], concept ids.
        fan_out: how many to draw of each; a concept with fewer gives all it has.
        keys: uint64 [n], one a concept.

    Returns:
        neighbors int32 [n, fan_out] and relations int32 [n, fan_out], the relation ids as read from the concept;
        both are -1 where there is no more neighbor.

    Raises:
        InputError: a concept id is not in the graph, or the graph is damaged.
    """
    starts, degrees = rows_of(graph, concepts)
    if not graph.num_edges or not starts.size:
        return nothing_drawn(starts.size, fan_out)
    return read_drawn(graph, choose(keys, degrees, fan_out), starts)


def rows_of(graph: KnowledgeGraph, concepts: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where the neighbor list of each concept starts and how long it is, both int64 [n], bounds checked."""
    rows = np.asarray(concepts, np.int64)
    if rows.size and not 0 <= rows.min() <= rows.max() < graph.num_concepts:
        raise InputError(f"{graph.path}: has {graph.num_concepts} concepts; ids outside of them were asked for")
    starts = graph.edge_offsets.take(rows, mode="clip").astype(np.int64)
    degrees = graph.edge_offsets.take(rows + 1, mode="clip").astype(np.int64) - starts
    if rows.size and (starts.min() < 0 or degrees.min() < 0 or (starts + degrees).max() > graph.entries.size):
        raise InputError(f"{graph.path / 'edges.offsets'}.npy: is damaged; build the graph again")
    return starts, degrees


def nothing_drawn(rows: int, fan_out: int) -> Drawn:
    """Return the answer for concepts without neighbors."""
    return np.full((rows, fan_out), -1, np.int32), np.full((rows, fan_out), -1, np.int32)


def read_drawn(graph: KnowledgeGraph, chosen: NDArray[np.int64], starts: NDArray[np.int64]) -> Drawn:
    """Return neighbors and relations at the chosen positions of rows, int64 [n, fan_out], -1 where there is none."""
    missing = chosen < 0
    neighbors, kinds = graph.entries.read(np.where(missing, 0, chosen + starts[:, None]))
    relations = graph.entries.relations.take(kinds)
    neighbors[missing] = relations[missing] = -1
    return neighbors, relations
