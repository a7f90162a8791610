"""The graph side of a batch: a star of each concept and its drawn neighbours, and a name for every node."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bali_ds.randomness import Keys, below, choose, derive
from bali_ds.stream.ragged import Ints, ranges, starts, within


class Stars(NamedTuple):
    """V stars with N nodes and E messages; the first node of a star is its concept.

    Attributes:
        concepts: int64 [N], the concept id of each node.
        views: int64 [N], the star of each node.
        slots: int64 [N], the node's place in its star.
        targets: int64 [V], the node that is each star's concept.
        edge_index: int64 [2, E], source and target of each message, both ways for each drawn fact.
        edge_relations: int64 [E], the relation as read from the target of the message.
    """

    concepts: Ints
    views: Ints
    slots: Ints
    targets: Ints
    edge_index: NDArray[np.int64]
    edge_relations: Ints


_NONE = np.empty(0, np.int64)
NO_STARS = Stars(_NONE, _NONE, _NONE, _NONE, np.empty((2, 0), np.int64), _NONE)


def draw_stars(
    concepts: Ints, keys: Keys, edges: NDArray[np.int32], begins: Ints, counts: Ints, fan_out: int, num_relations: int
) -> Stars:
    """Draw up to `fan_out` of the stored neighbours of each view, uniformly and without replacement.

    Args:
        concepts: int64 [V], the concept of each view.
        keys: uint64 [V], the key of each view.
        edges: int32 [all, 3]: concept id, relation id, neighbour id.
        begins: int64 [V], the first stored edge of each view in `edges`.
        counts: int64 [V], stored edges of each view.
        fan_out: neighbours to draw.
        num_relations: R, relations in one direction; relation r + R is the inverse of r.
    """
    chosen = choose(derive(keys, "neighbours"), counts, fan_out)
    drawn = np.minimum(counts, fan_out)
    picked = edges[(begins[:, None] + chosen)[chosen >= 0]].astype(np.int64)
    sizes = 1 + drawn
    targets, slots = starts(sizes), within(sizes)
    nodes = np.empty(int(sizes.sum()), np.int64)
    nodes[targets] = concepts
    neighbours = ranges(targets + 1, drawn)
    nodes[neighbours] = picked[:, 2]
    centres, relations = np.repeat(targets, drawn), picked[:, 1]
    return Stars(
        nodes,
        np.repeat(np.arange(concepts.size), sizes),
        slots,
        targets,
        np.stack([np.concatenate([neighbours, centres]), np.concatenate([centres, neighbours])]),
        np.concatenate([relations, (relations + num_relations) % (2 * num_relations)]),
    )


def draw_names(stars: Stars, keys: Keys, name_offsets: NDArray[np.int64]) -> Ints:
    """Draw one of each node's names, uniformly; the name ids, int64 [N], -1 for a concept without names."""
    begins = name_offsets[stars.concepts].astype(np.int64)
    counts = name_offsets[stars.concepts + 1].astype(np.int64) - begins
    draw = below(derive(keys[stars.views], "synonym", stars.slots), counts)
    return np.where(counts > 0, begins + draw, -1)
