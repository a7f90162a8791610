"""Neighbours drawn from a concept graph, many concepts at once."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bali_ds.errors import InputError
from bali_ds.graph.store import KnowledgeGraph
from bali_ds.randomness import Keys, choose


def sample_neighbours(
    graph: KnowledgeGraph, concepts: ArrayLike, fan_out: int, keys: Keys
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Draw neighbours uniformly without replacement; what is drawn depends on the key of the row alone.

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
    rows = np.asarray(concepts, np.int64)
    if rows.size and not 0 <= rows.min() <= rows.max() < graph.num_concepts:
        raise InputError(f"{graph.path}: has {graph.num_concepts} concepts; ids outside of them were asked for")
    if not graph.num_edges or not rows.size:
        nothing = np.full((rows.size, fan_out), -1, np.int32)
        return nothing, nothing.copy()
    starts = graph.edge_offsets[rows]
    chosen = choose(keys, graph.edge_offsets[rows + 1] - starts, fan_out)
    entries = np.where(chosen < 0, 0, chosen + starts[:, None])
    if entries.min() < 0 or entries.max() >= graph.edge_targets.size:
        raise InputError(f"{graph.path / 'edges.offsets'}.npy: damaged; build the graph again")
    missing = chosen < 0
    neighbours = np.where(missing, np.int32(-1), graph.edge_targets[entries])
    relations = np.where(missing, np.int32(-1), graph.edge_relations[entries].astype(np.int32))
    return neighbours, relations
