"""Neighbours drawn from a concept graph, many concepts at once.

What is drawn of a concept depends on its own key alone, never on what else is in the batch.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bali_ds.errors import InputError
from bali_ds.graph.store import KnowledgeGraph
from bali_ds.randomness import Keys, choose

Drawn = tuple[NDArray[np.int32], NDArray[np.int32]]


def sample_neighbours(graph: KnowledgeGraph, concepts: ArrayLike, fan_out: int, keys: Keys) -> Drawn:
    """Draw neighbours uniformly without replacement.

    Args:
        graph: the graph.
        concepts: int [n], concept ids.
        fan_out: how many to draw of each; a concept with fewer gives all it has.
        keys: uint64 [n], one a concept.

    Returns:
        neighbours int32 [n, fan_out] and relations int32 [n, fan_out], the relation ids as read from the concept;
        both are -1 where there is no more neighbour.

    Raises:
        InputError: a concept id is not in the graph, or the graph is damaged.
    """
    starts, degrees = rows_of(graph, concepts)
    if not graph.num_edges or not starts.size:
        return nothing_drawn(starts.size, fan_out)
    return read_drawn(graph, choose(keys, degrees, fan_out), starts)


def rows_of(graph: KnowledgeGraph, concepts: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where the neighbour list of each concept starts and how long it is, both int64 [n], bounds checked."""
    rows = np.asarray(concepts, np.int64)
    if rows.size and not 0 <= rows.min() <= rows.max() < graph.num_concepts:
        raise InputError(f"{graph.path}: has {graph.num_concepts} concepts; ids outside of them were asked for")
    starts = graph.edge_offsets.take(rows, mode="clip")
    degrees = graph.edge_offsets.take(rows + 1, mode="clip") - starts
    if rows.size and (starts.min() < 0 or degrees.min() < 0 or (starts + degrees).max() > graph.edge_targets.size):
        raise InputError(f"{graph.path / 'edges.offsets'}.npy: is damaged; build the graph again")
    return starts, degrees


def nothing_drawn(rows: int, fan_out: int) -> Drawn:
    """Return the answer for concepts without neighbours."""
    return np.full((rows, fan_out), -1, np.int32), np.full((rows, fan_out), -1, np.int32)


def read_drawn(graph: KnowledgeGraph, chosen: NDArray[np.int64], starts: NDArray[np.int64]) -> Drawn:
    """Return neighbours and relations at the chosen positions of rows, int64 [n, fan_out], -1 where there is none."""
    missing = chosen < 0
    entries = np.where(missing, 0, chosen + starts[:, None])
    neighbours = gather(graph, "targets", entries)
    relations = gather(graph, "relations", entries).astype(np.int32)
    neighbours[missing] = relations[missing] = -1
    return neighbours, relations


def gather(graph: KnowledgeGraph, column: str, entries: NDArray[np.int64] | slice) -> NDArray[Any]:
    """Return what a column of the neighbour lists ("targets", "relations", "sources") holds at some entries.

    Raises:
        InputError: a value is no concept, relation or source of the graph: the column is damaged.
    """
    values, limit = {
        "targets": (graph.edge_targets, graph.num_concepts),
        "relations": (graph.edge_relations, 2 * graph.num_relations),
        "sources": (graph.edge_sources, len(graph.sources)),
    }[column]
    # Clipping spares the check of each entry; callers have checked the bounds of whole rows.
    found = values[entries] if isinstance(entries, slice) else values.take(entries, mode="clip")
    if found.size and not 0 <= found.min() <= found.max() < limit:
        raise InputError(f"{graph.path / 'edges'}.{column}.npy: is damaged; build the graph again")
    return found
