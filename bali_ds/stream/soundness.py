"""Samples that cannot be used: how they are told, and what takes their place."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bali_ds.randomness import below, derive
from bali_ds.stream.mixture import Mixture
from bali_ds.stream.ragged import Ints
from bali_ds.stream.reader import Samples

NOT_FOUND = "its arrays are not where the sample table says"
REASONS = (
    "",
    NOT_FOUND,
    "a token is outside of the vocabulary",
    "a mention lies outside of the passage",
    "a concept is not in the graph",
    "an edge is not of the passage or not of the graph",
)


class Replacement(NamedTuple):
    """A bad sample, the sample taken in its place, and why; rows of the sample table."""

    row: int
    by: int
    reason: str


def find_faults(samples: Samples, stray_edges: Ints, shards: Mixture) -> NDArray[np.int64]:
    """Return what is wrong with each sample, int64 [n], as a place in `REASONS`; 0 where nothing is.

    It follows from the sample alone, whatever samples are read with it: ranks that read others must not differ.

    Args:
        samples: as read.
        stray_edges: int64, the samples whose edges do not follow the order of their concepts.
        shards: gives the bounds of all ids.
    """
    counts, numbers = shards.index["graph"], np.arange(samples.rows.size)
    sample_of_mention = np.repeat(numbers, samples.mention_counts)
    sample_of_edge = np.repeat(numbers, samples.edge_counts)
    begins, ends, concepts = samples.mentions.T
    _, relations, neighbours = samples.edges.T
    faults = np.zeros(samples.rows.size, np.int64)
    # From the last reason to the first: where several hold, the one that explains the others stays.
    outside = _outside(relations, 2 * counts["relations"]) | _outside(neighbours, counts["concepts"])
    faults[sample_of_edge[outside]] = 5
    faults[stray_edges] = 5
    faults[sample_of_mention[_outside(concepts, counts["concepts"])]] = 4
    last = samples.lengths[sample_of_mention] - 1
    faults[sample_of_mention[(begins < 1) | (ends <= begins) | (ends > last)]] = 3
    outside = _outside(samples.tokens, shards.index["tokenizer"]["vocab_size"])
    if outside.any():
        faults[np.repeat(numbers, samples.lengths)[outside]] = 2
    faults[~samples.found] = 1
    return faults


def _outside(ids: NDArray[np.integer], count: int) -> NDArray[np.bool_]:
    return (ids < 0) | (ids >= count)


def substitutes(seed: int, occasions: Ints, rows: Ints, attempt: int, shards: Mixture, split: str) -> Ints:
    """Return what to try in place of bad samples, int64 [n]: random rows of the same set, the same wherever drawn."""
    sets = shards.set_numbers(rows)
    splits = [each.split(split) for each in shards.sets]
    begins = shards.starts[:-1] + np.array([rows_of_set.start for rows_of_set in splits], np.int64)
    sizes = np.array([len(rows_of_set) for rows_of_set in splits])
    return begins[sets] + below(derive("substitute", seed, occasions, rows, attempt), sizes[sets])
