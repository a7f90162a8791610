"""Sampling weights by concept frequency: passages of rare concepts come more often, those of frequent ones less.

Each passage of n has the weight mean(f_c ** (temperature - 1)) over its concepts c, where f_c is the number of passages
that mention c: 1 takes passages as they are, 0 makes up for the frequency of concepts in full (the smoothing of
Mikolov et al., "Distributed Representations of Words and Phrases", 2013, 2.2, and of multilingual language models).

An epoch still has n positions. The weights, scaled to a sum of n, lie end to end on a line; position k takes the
passage at point k + u, where u in [0, 1) is sampled for the epoch (systematic sampling, Madow 1949). A passage of
weight 2.3 is thus taken 2 or 3 times, 2.3 times on average; the passage of a position is found in logarithmic time.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bali_ds.data.ego_graphs import sample_concept_keys
from bali_ds.data.mixture import Mixture
from bali_ds.data.reader import SampleReader
from bali_ds.data.remote import cache_home, locked
from bali_ds.data.sequences import Ints
from bali_ds.errors import InputError
from bali_ds.files import published_file
from bali_ds.npy import open_npy
from bali_ds.randomness import Keys, uniform

# Whole numbers, so that sums of millions are exact and the same on every machine.
_UNIT = 1 << 20
_ROWS_AT_ONCE = 4096


class FrequencySampler:
    """The passage of each position of an epoch, sampled by weight.

    Args:
        ends: int64 [n], where the weight of each passage ends on the line.
    """

    def __init__(self, ends: Ints) -> None:
        self._ends = ends
        self._scale = int(ends[-1]) / ends.size

    def take(self, positions: Ints, key: Keys) -> tuple[Ints, Ints]:
        """Return the passage of each position, counted from the first, and how often the epoch took it before.

        Args:
            positions: int64 [m], each in [0, n); int64 [m] and int64 [m] are returned.
            key: uint64 [1], of the epoch.
        """
        offset = float(uniform(key)[0])
        points = ((positions + offset) * self._scale).astype(np.int64)
        passages = np.minimum(np.searchsorted(self._ends, points, side="right"), self._ends.size - 1)
        begins = np.where(passages > 0, self._ends[passages - 1], 0)
        earlier = positions - np.ceil(begins / self._scale - offset).astype(np.int64)
        return passages, np.maximum(earlier, 0)


def frequency_sampler(mixture: Mixture, number: int, split: str, temperature: float) -> FrequencySampler:
    """Return the weighted sampler of one set of a mixture; the weights are computed once and cached on disk.

    Raises:
        InputError: the shards cannot be read.
    """
    own, rows = mixture.sets[number], mixture.rows_of(number, split)
    # the name depends on the directory too: another one may claim the same fingerprint
    described = json.dumps([str(own.path.resolve()), own.fingerprint, split, temperature])
    path = cache_home() / "weights" / f"{hashlib.sha256(described.encode()).hexdigest()[:24]}.npy"
    with locked(path.with_suffix(".lock")):
        if not path.exists():
            _write(path, passage_weights(mixture, rows, temperature))
    ends = open_npy(path, "<i8", (rows.size,), "remove it")
    if ends[0] <= 0 or (ends[1:] <= ends[:-1]).any():
        raise InputError(f"{path}: is damaged; remove it")
    return FrequencySampler(ends)


def passage_weights(mixture: Mixture, sample_rows: Ints, temperature: float) -> NDArray[np.float64]:
    """Return the weight of each passage, float64 [n], in any unit; one without concepts has the mean weight."""
    concept_ids, counts = _concept_ids(mixture, sample_rows)
    # not counted in an array of all concepts, whose number is what the index says
    _, inverse, frequencies = np.unique(concept_ids, return_inverse=True, return_counts=True)
    rarities = frequencies[inverse] ** (temperature - 1.0)
    passages = np.repeat(np.arange(sample_rows.size), counts)
    sums = np.bincount(passages, rarities, minlength=sample_rows.size)
    some = counts > 0
    weights = np.full(sample_rows.size, (sums[some] / counts[some]).mean() if some.any() else 1.0)
    weights[some] = sums[some] / counts[some]
    return weights


def _concept_ids(mixture: Mixture, sample_rows: Ints) -> tuple[NDArray[np.int32], Ints]:
    """Return the distinct concepts of all passages, int32 [views], and how many each has, int64 [n]."""
    reader, num_concepts = SampleReader(mixture), int(mixture.index["graph"]["concepts"])
    concept_ids, counts = [np.empty(0, np.int32)], [np.empty(0, np.int64)]
    for begin in range(0, sample_rows.size, _ROWS_AT_ONCE):
        samples = reader.read(sample_rows[begin : begin + _ROWS_AT_ONCE])
        size, mentioned = samples.sample_rows.size, samples.mention_concept_ids
        passages = np.repeat(np.arange(size), samples.mention_counts)
        known = np.flatnonzero((mentioned >= 0) & (mentioned < num_concepts) & samples.found[passages])
        _, first = np.unique(sample_concept_keys(passages[known], mentioned[known]), return_index=True)
        concept_ids.append(mentioned[known[first]])
        counts.append(np.bincount(passages[known[first]], minlength=size))
    return np.concatenate(concept_ids), np.concatenate(counts)


def _write(path: Path, weights: NDArray[np.float64]) -> None:
    units = np.maximum(np.rint(weights / weights.mean() * _UNIT), 1).astype(np.int64)
    with published_file(path) as stream:
        np.save(stream, np.cumsum(units), allow_pickle=False)
