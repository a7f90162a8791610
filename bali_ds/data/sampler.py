"""The order of samples: a pure function of fingerprint, seed and epoch, any part of it computed in constant time.

    shards, permuted
      └─ one sequence of samples, cut into LANES equal ranges
           └─ each range shuffled within windows
                └─ position p of the epoch = entry p // LANES of lane p % LANES

Rank r of W takes positions r, r + W, ... of every global batch. Where W shares factors with LANES, a rank therefore
returns to the same few lanes for the whole epoch and reads each of them from one end to the other.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bali_ds.data.frequency_weights import FrequencySampler, frequency_sampler
from bali_ds.data.mixture import Mixture
from bali_ds.data.sequences import Ints, starts
from bali_ds.data.settings import StreamSettings
from bali_ds.errors import InputError
from bali_ds.randomness import derive, permute
from bali_ds.shards.shard_set import ShardSet

LANES = 96


@dataclass(frozen=True)
class Position:
    """Position of a run in its data: all that a loader needs to resume.

    Attributes:
        epoch: number of epochs completed.
        samples_seen: samples that all ranks together took from this epoch.
    """

    epoch: int = 0
    samples_seen: int = 0


class EpochOrder:
    """The order of one epoch.

    A set that fits into one window per lane is shuffled as a whole: lanes only serve reading from one end to the
    other, and a set so small needs none.

    Args:
        shard_sizes: samples of each shard, in the order of the sample table.
        fingerprint: of the shard set.
        seed: of the run.
        epoch: number of the epoch.
        window: samples that are shuffled among each other within a lane.
    """

    def __init__(self, shard_sizes: ArrayLike, fingerprint: str, seed: int, epoch: int, *, window: int = 1024) -> None:
        sizes = np.asarray(shard_sizes, np.int64)
        self.size = int(sizes.sum())
        self._window = window
        self._key = derive(fingerprint, seed, epoch)
        self._shards = permute(np.arange(sizes.size), sizes.size, derive(self._key, "shards"))
        self._first_rows = (np.cumsum(sizes) - sizes)[self._shards]
        self._ends = np.cumsum(sizes[self._shards])
        self._begins = self._ends - sizes[self._shards]

    def rows(self, positions: ArrayLike) -> NDArray[np.int64]:
        """Return the sample rows, counted from the first sample of the first shard, at positions of the epoch.

        Args:
            positions: int [n], each in [0, size).
        """
        positions = np.atleast_1d(np.asarray(positions, np.int64))
        if self.size <= LANES * self._window:
            return permute(positions, self.size, derive(self._key, "all"))
        places = self._places(positions)
        shards = np.searchsorted(self._ends, places, side="right")
        return self._first_rows[shards] + places - self._begins[shards]

    def _places(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the places of positions of the epoch in the sequence of permuted shards."""
        lanes, entries = positions % LANES, positions // LANES
        shortest, longer = divmod(self.size, LANES)
        lane_sizes = shortest + (lanes < longer)
        lane_begins = lanes * shortest + np.minimum(lanes, longer)
        windows, within = entries // self._window, entries % self._window
        window_sizes = np.minimum(lane_sizes - windows * self._window, self._window)
        shuffled = permute(within, window_sizes, derive(self._key, "window", lanes, windows))
        return lane_begins + windows * self._window + shuffled


class Schedule:
    """The positions that each step takes, from a starting position on, over any number of epochs.

    An epoch has `size // global_batch` steps; its tail of fewer than `global_batch` samples is dropped, the same on all
    ranks. The next epoch, in another order, drops other samples.

    Args:
        size: samples of an epoch.
        global_batch: samples of a step over all ranks.
        start: where the first step begins; the global batch may differ from the one before it.

    Raises:
        InputError: an epoch is shorter than one step, or the start lies outside it.
    """

    def __init__(self, size: int, global_batch: int, start: Position | None = None) -> None:
        start = start or Position()
        if not 0 < global_batch <= size:
            raise InputError(
                f"global batch {global_batch}: an epoch has {size} samples; "
                "take a batch between 1 and that, or build more shards"
            )
        if start.epoch < 0 or not 0 <= start.samples_seen <= size:
            raise InputError(
                f"position {start}: an epoch has {size} samples; the checkpoint belongs to another shard set"
            )
        self.steps_per_epoch = size // global_batch
        self._size, self._global_batch, self._start = size, global_batch, start

    def begin(self, step: int) -> Position:
        """Return where a step begins; steps count from the start of this schedule."""
        first = (self._size - self._start.samples_seen) // self._global_batch
        if step < first:
            return Position(self._start.epoch, self._start.samples_seen + step * self._global_batch)
        epochs, within = divmod(step - first, self.steps_per_epoch)
        return Position(self._start.epoch + 1 + epochs, within * self._global_batch)


def rank_offsets(global_batch: int, micro_batches: int, rank: int, world_size: int) -> NDArray[np.int64]:
    """Return the offsets of a rank's slice in each global batch: every `world_size`-th, from `rank` on.

    Raises:
        InputError: the global batch cannot be split evenly over ranks and micro-batches.
    """
    if world_size < 1 or micro_batches < 1 or not 0 <= rank < world_size:
        raise InputError(f"rank {rank} of {world_size}, {micro_batches} micro-batches: is not a slice of a batch")
    if global_batch % (world_size * micro_batches):
        raise InputError(
            f"global batch {global_batch}: is not a multiple of {world_size} ranks x {micro_batches} micro-batches; "
            f"take a multiple of {world_size * micro_batches}"
        )
    return np.arange(rank, global_batch, world_size)


def epoch_order(shards: ShardSet, split: str, seed: int, epoch: int, window: int) -> EpochOrder:
    """Return the order of one epoch over one split of a shard set."""
    sizes = [shard.samples for shard in shards.shards if shard.split == split]
    return EpochOrder(sizes, shards.fingerprint, seed, epoch, window=window)


# Proportions hold exactly in rounds of at least so many positions, and nearly in every batch.
_ROUND = 256
# A weighted epoch may take a sample again, which then needs other random draws.
_AGAIN = 1 << 32


class SampleIndices(NamedTuple):
    """Samples to collate, with a number that tells repeated uses of a sample apart.

    Attributes:
        sample_rows: int64 [n], rows in the sample table of the mixture.
        repeats: int64 [n], the epoch of the sample's set, plus 2**32 for each earlier use in that epoch.
    """

    sample_rows: Ints
    repeats: Ints


class SampleOrder:
    """The order of samples of a run, a function of the fingerprints, the seed and the proportions.

    Args:
        mixture: the sets.
        settings: seed, window, split and temperature.

    Attributes:
        size: samples of all sets, and positions of an epoch of the run.
    """

    def __init__(self, mixture: Mixture, settings: StreamSettings) -> None:
        self._mixture, self._settings = mixture, settings
        self._sizes = [len(each.split(settings.split)) for each in mixture.sets]
        self.size = sum(self._sizes)
        self._check_sizes()
        multiple = -(-_ROUND // sum(mixture.proportions))
        self._per_round = np.array(mixture.proportions, np.int64) * multiple
        self._key = derive(mixture.fingerprint, settings.seed, "mixture")
        self._order = lru_cache(4 * len(mixture.sets))(self._epoch_order)
        self._weighted: tuple[FrequencySampler, ...] = ()
        if settings.temperature != 1:
            self._weighted = tuple(
                frequency_sampler(mixture, number, settings.split, settings.temperature)
                for number in range(len(mixture.sets))
            )

    def indices(self, positions: Ints) -> SampleIndices:
        """Return the samples at positions of the run, int64 [n]: epoch * size + samples seen in the epoch."""
        if len(self._sizes) == 1:
            return self._indices_in_set(0, positions)
        numbers, places = self._mixed(positions)
        sample_rows, repeats = np.empty_like(positions), np.empty_like(positions)
        for number in np.unique(numbers).tolist():
            held = numbers == number
            sample_rows[held], repeats[held] = self._indices_in_set(number, places[held])
        return SampleIndices(sample_rows, repeats)

    def _mixed(self, positions: Ints) -> tuple[Ints, Ints]:
        """Return the set of each position, and how many earlier positions take the same set."""
        length = int(self._per_round.sum())
        rounds, within = np.divmod(positions, length)
        slots = permute(within, length, derive(self._key, rounds))
        numbers = np.searchsorted(np.cumsum(self._per_round), slots, side="right")
        return numbers, rounds * self._per_round[numbers] + slots - starts(self._per_round)[numbers]

    def _indices_in_set(self, number: int, places: Ints) -> SampleIndices:
        epochs, entries = np.divmod(places, self._sizes[number])
        rows, repeats = np.empty_like(places), epochs.copy()
        for epoch in np.unique(epochs).tolist():
            held = epochs == epoch
            rows[held] = self._order(number, epoch).rows(entries[held])
            if self._weighted:
                key = derive(self._mixture.sets[number].fingerprint, self._settings.seed, epoch, "weights")
                rows[held], earlier = self._weighted[number].take(rows[held], key)
                repeats[held] += _AGAIN * earlier
        return SampleIndices(rows + self._first_row(number), repeats)

    def _first_row(self, number: int) -> int:
        each = self._mixture.sets[number]
        return int(self._mixture.starts[number]) + each.split(self._settings.split).start

    def _epoch_order(self, number: int, epoch: int) -> EpochOrder:
        settings = self._settings
        return epoch_order(self._mixture.sets[number], settings.split, settings.seed, epoch, settings.window)

    def _check_sizes(self) -> None:
        for each, size in zip(self._mixture.sets, self._sizes, strict=True):
            if not size:
                raise InputError(f"{each.path}: has no {self._settings.split} samples")
