"""Sample validation: finds samples that cannot be used, replaces them and keeps count."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bali_ds.data.mixture import Mixture
from bali_ds.data.reader import Samples
from bali_ds.data.sequences import Ints
from bali_ds.errors import InputError
from bali_ds.files import append_lines
from bali_ds.randomness import below, derive

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


def find_faults(samples: Samples, misordered: Ints, shards: Mixture) -> NDArray[np.int64]:
    """Return what is wrong with each sample, int64 [n], as an index into `REASONS`; 0 for a valid sample.

    The result for a sample depends on that sample alone: ranks that read it with other samples must come to the same.

    Args:
        samples: as read.
        misordered: int64, the samples whose edges do not follow the order of their concepts.
        shards: gives the bounds of all ids.
    """
    counts, numbers = shards.index["graph"], np.arange(samples.sample_rows.size)
    sample_of_mention = np.repeat(numbers, samples.mention_counts)
    sample_of_edge = np.repeat(numbers, samples.edge_counts)
    begins, ends, concept_ids = samples.mentions.T
    _, relations, neighbors = samples.edges.T
    faults = np.zeros(samples.sample_rows.size, np.int64)
    # from the last reason to the first, so that of several the one that explains the others stays
    outside = _outside(relations, 2 * counts["relations"]) | _outside(neighbors, counts["concepts"])
    faults[sample_of_edge[outside]] = 5
    faults[misordered] = 5
    faults[sample_of_mention[_outside(concept_ids, counts["concepts"])]] = 4
    last = samples.lengths[sample_of_mention] - 1
    faults[sample_of_mention[(begins < 1) | (ends <= begins) | (ends > last)]] = 3
    outside = _outside(samples.tokens, shards.index["tokenizer"]["vocab_size"])
    if outside.any():
        faults[np.repeat(numbers, samples.lengths)[outside]] = 2
    faults[~samples.found] = 1
    return faults


def _outside(ids: NDArray[np.integer], count: int) -> NDArray[np.bool_]:
    return (ids < 0) | (ids >= count)


def substitutes(seed: int, repeats: Ints, sample_rows: Ints, attempt: int, shards: Mixture, split: str) -> Ints:
    """Return rows to try in place of bad samples, int64 [n]: random ones of the same set, the same on every rank."""
    sets = shards.set_numbers(sample_rows)
    splits = [each.split(split) for each in shards.sets]
    begins = shards.starts[:-1] + np.array([rows_of_set.start for rows_of_set in splits], np.int64)
    sizes = np.array([len(rows_of_set) for rows_of_set in splits])
    return begins[sets] + below(derive("substitute", seed, repeats, sample_rows, attempt), sizes[sets])


logger = logging.getLogger(__name__)

# A share of a few samples is too noisy for a limit, so that many samples count as seen from the start.
_FIRST_SAMPLES = 1000


class Quarantine:
    """Count of the bad samples of one rank, with a log file and a limit.

    Args:
        shards: where they come from.
        path: file to append to, one JSON object a line: step (since the loader was made), shard, row, key, reason,
            replaced_by. None writes nothing.
        limit: share of samples that may be bad.
    """

    def __init__(self, shards: Mixture, path: Path | None, limit: float) -> None:
        self._shards, self._path, self._limit = shards, path, limit
        self._seen = self._bad = 0

    def record(self, step: int, samples: int, replaced: Sequence[Replacement]) -> None:
        """Count a step's samples and log the bad ones.

        Raises:
            InputError: too many samples so far were bad.
        """
        self._seen += samples
        if not replaced:
            return
        self._bad += len(replaced)
        entries = [self._entry(step, replacement) for replacement in replaced]
        for entry in entries:
            logger.warning("%(shard)s: sample %(row)s (%(key)s) is skipped: %(reason)s", entry)
        if self._path:
            append_lines(self._path, map(json.dumps, entries))
        if self._bad > self._limit * max(self._seen, _FIRST_SAMPLES):
            raise InputError(
                f"{self._shards.name}: {self._bad} of {self._seen} samples were bad, more than a share of "
                f"{self._limit}; see {self._path or 'the warnings above'}, and: bali-ds shards lint"
            )

    def _entry(self, step: int, replacement: Replacement) -> dict[str, object]:
        number = int(self._shards.shard_numbers(np.array([replacement.row]))[0])
        return {
            "step": step,
            "shard": str(self._shards.tar(number)),
            "row": replacement.row,
            "key": None if replacement.reason == NOT_FOUND else self._shards.key(replacement.row),
            "reason": replacement.reason,
            "replaced_by": replacement.by,
        }
