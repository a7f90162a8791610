"""Siblings: concepts with the same relation to the same neighbor, hard negatives of each other."""

import numpy as np
from numpy.typing import NDArray

from bali_ds.data.batch_part import SampleSource
from bali_ds.data.name_codes import name_tokens
from bali_ds.data.sequences import Flags, Ints, ranges, within
from bali_ds.randomness import Keys, derive
from bali_ds.shards.shard_set import Names

_LOOKED_AT = 16  # facts of the shared neighbor, of which several may have another relation
_COMPARED = 64  # names of a concept; few have more


def sample_siblings(concept_ids: Ints, keys: Keys, source: SampleSource) -> Ints:
    """Draw a sibling of each concept that has names of its own, int64 [n]; -1 where none is found.

    A random fact of the concept names the neighbor and the relation. The sibling comes from the first of sixteen random
    facts of that neighbor that fits; it counts only if it shares no name with the concept, of which it is a negative.

    Args:
        concept_ids: int64 [n].
        keys: uint64 [n].
        source: the graph and its names.
    """
    graph = source.graph
    neighbors, relations = (each[:, 0] for each in source.neighbors(concept_ids, 1, derive(keys, "shared neighbor")))
    inverse = (relations + graph.num_relations) % max(2 * graph.num_relations, 1)
    of_neighbor = np.maximum(neighbors, 0).astype(np.int64)
    candidates, kinds = source.neighbors(of_neighbor, _LOOKED_AT, derive(keys, "sibling"))
    places = np.maximum(candidates, 0)
    named = graph.name_offsets[places + 1] > graph.name_offsets[places]
    fitting = named & (kinds == inverse[:, None]) & (candidates >= 0) & (candidates != concept_ids[:, None])
    fitting &= neighbors[:, None] >= 0
    first = candidates[np.arange(concept_ids.size), fitting.argmax(axis=1)].astype(np.int64)
    found = np.flatnonzero(fitting.any(axis=1))
    found = found[~share_names(concept_ids[found], first[found], graph.name_offsets, source.shards.names)]
    siblings = np.full(concept_ids.size, -1, np.int64)
    siblings[found] = first[found]
    return siblings


def share_names(first: Ints, second: Ints, name_offsets: NDArray[np.int64], table: Names) -> Flags:
    """Return whether any of the first 64 names of two concepts have equal tokens, bool [n].

    Args:
        first: int64 [n], concepts.
        second: int64 [n], other concepts.
        name_offsets: int64 [C + 1], the first name id of each concept.
        table: the tokens of all names.
    """

    def keys(concept_ids: Ints) -> tuple[Ints, Keys]:
        begins = name_offsets[concept_ids].astype(np.int64)
        counts = np.minimum(name_offsets[concept_ids + 1].astype(np.int64) - begins, _COMPARED)
        rows = np.repeat(np.arange(concept_ids.size), counts)
        tokens, lengths = name_tokens(ranges(begins, counts), table, 0)
        of_name = np.zeros(rows.size, np.uint64)
        np.add.at(of_name, np.repeat(np.arange(rows.size), lengths), derive(tokens, within(lengths)))
        return rows, derive(rows, of_name)

    (rows, own), (_, others) = keys(first), keys(second)
    shared = np.zeros(first.size, bool)
    shared[rows[np.isin(own, others)]] = True
    return shared
