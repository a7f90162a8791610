"""The order of samples: a pure function of fingerprint, seed and epoch, any part of it computed in constant time.

    shards, permuted
      └─ one sequence of samples, cut into LANES equal ranges
           └─ each range shuffled within windows
                └─ position p of the epoch = entry p // LANES of lane p % LANES

Rank r of W takes positions r, r + W, ... of every global batch. Where W shares factors with LANES, a rank therefore
returns to the same few lanes for the whole epoch and reads each of them from one end to the other.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bali_ds.errors import InputError
from bali_ds.randomness import derive, permute
from bali_ds.shards.store import ShardSet

LANES = 96


@dataclass(frozen=True)
class Position:
    """Where a run stands in its data; all that a loader needs to go on.

    Attributes:
        epoch: epochs begun before this one.
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
        """Where positions of the epoch lie in the sequence of permuted shards."""
        lanes, entries = positions % LANES, positions // LANES
        shortest, longer = divmod(self.size, LANES)
        lane_sizes = shortest + (lanes < longer)
        lane_begins = lanes * shortest + np.minimum(lanes, longer)
        windows, within = entries // self._window, entries % self._window
        window_sizes = np.minimum(lane_sizes - windows * self._window, self._window)
        shuffled = permute(within, window_sizes, derive(self._key, "window", lanes, windows))
        return lane_begins + windows * self._window + shuffled


class Schedule:
    """Which positions each step takes, from a starting position on, over as many epochs as wanted.

    An epoch has `size // global_batch` steps; its tail of fewer than `global_batch` samples is left out, on all ranks
    alike, and another tail in the next epoch, whose order differs.

    Args:
        size: samples of an epoch.
        global_batch: samples of a step over all ranks.
        start: where the first step begins; another global batch than before may go on from there.

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


def rank_share(global_batch: int, chunks: int, rank: int, world_size: int) -> NDArray[np.int64]:
    """Return the offsets into each global batch that a rank takes: every `world_size`-th, from `rank` on.

    Raises:
        InputError: the global batch cannot be split evenly over ranks and chunks.
    """
    if world_size < 1 or chunks < 1 or not 0 <= rank < world_size:
        raise InputError(f"rank {rank} of {world_size}, {chunks} chunks: no such share of a batch")
    if global_batch % (world_size * chunks):
        raise InputError(
            f"global batch {global_batch}: is no multiple of {world_size} ranks x {chunks} micro-batches a step; "
            f"take a multiple of {world_size * chunks}"
        )
    return np.arange(rank, global_batch, world_size)


def epoch_order(shards: ShardSet, split: str, seed: int, epoch: int, window: int) -> EpochOrder:
    """Return the order of one epoch over one split of a shard set."""
    sizes = [shard.samples for shard in shards.shards if shard.split == split]
    return EpochOrder(sizes, shards.fingerprint, seed, epoch, window=window)
