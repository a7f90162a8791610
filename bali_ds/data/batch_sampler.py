"""Batch sampler: the steps of one rank, from positions in the order to collated arrays.

Each loader worker has one; without workers the loader has it.
"""

import itertools
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bali_ds.bus_errors import bus_errors_raised
from bali_ds.data.batch import Batch
from bali_ds.data.collator import Collator
from bali_ds.data.mixture import Mixture
from bali_ds.data.reader import SampleReader
from bali_ds.data.sample_validation import Replacement
from bali_ds.data.sampler import Position, SampleIndices, SampleOrder, Schedule, rank_offsets
from bali_ds.data.sequences import Ints
from bali_ds.data.settings import StreamSettings
from bali_ds.errors import InputError
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.shards.shard_set import ShardSet

# Far enough for a shard to arrive while these steps are taken, near enough for the cache to hold the shards between.
_STEPS_AHEAD = 32
# Numpy's overhead per operation is paid once for this many samples.
_SAMPLES_AT_ONCE = 256


class StepArrays(NamedTuple):
    """One step of one rank: the position after it, its micro-batches, and the bad samples that were replaced."""

    position_after: Position
    micro_batches: tuple[Batch[Ints], ...]
    replaced: tuple[Replacement, ...] = ()


@dataclass(frozen=True)
class RankSlice:
    """One rank's slice of every global batch.

    Attributes:
        global_batch: samples of a step over all ranks.
        micro_batches: micro-batches that the slice is split into.
        rank: of this process.
        world_size: number of ranks.
    """

    global_batch: int
    micro_batches: int = 1
    rank: int = 0
    world_size: int = 1


class BatchSampler:
    """Any step of a rank in constant time; steps count from `start`."""

    def __init__(
        self,
        shards: ShardSet | Mixture,
        graph: KnowledgeGraph,
        settings: StreamSettings,
        own: RankSlice,
        start: Position,
    ) -> None:
        mixture, self._micro_batches = Mixture.of(shards), own.micro_batches
        self._offsets = rank_offsets(own.global_batch, own.micro_batches, own.rank, own.world_size)
        self._collator = Collator.of(mixture, graph, settings)
        self._order = SampleOrder(mixture, settings)
        self.schedule = Schedule(self._order.size, own.global_batch, start)
        self._prefetcher = _ShardPrefetcher(self._collator.reader) if self._collator.reader.remote else None

    def __getitem__(self, step: int) -> StepArrays:
        """Return a step.

        Raises:
            InputError: the shards cannot be read.
        """
        return self.take([step])[0]

    def run(self, first: int = 0, stride: int = 1) -> Iterator[StepArrays]:
        """Yield the steps `first`, `first + stride`, ... without end; several at once where they have few samples.

        Raises:
            InputError: the shards cannot be read.
        """
        together = max(1, _SAMPLES_AT_ONCE // self._offsets.size)
        for begin in itertools.count(first, together * stride):
            yield from self.take(range(begin, begin + together * stride, stride))

    @bus_errors_raised()
    def take(self, numbers: Sequence[int]) -> list[StepArrays]:
        """Return some steps, collated together.

        Raises:
            InputError: the shards cannot be read.
        """
        if self._prefetcher:
            distance = numbers[-1] - numbers[0] + _STEPS_AHEAD
            self._prefetcher.fetch(self._indices([number + distance for number in numbers]).sample_rows)
        count = self._micro_batches
        collated = self._collator.collate(self._indices(numbers), count * len(numbers))
        steps = []
        for place, number in enumerate(numbers):
            batches, replaced = zip(*collated[place * count : (place + 1) * count], strict=True)
            steps.append(StepArrays(self.schedule.begin(number + 1), batches, tuple(itertools.chain(*replaced))))
        return steps

    def close(self) -> None:
        """Stop prefetching."""
        if self._prefetcher:
            self._prefetcher.close()

    def _indices(self, numbers: Sequence[int]) -> SampleIndices:
        begins = [self.schedule.begin(number) for number in numbers]
        firsts = np.array([begin.epoch * self._order.size + begin.samples_seen for begin in begins], np.int64)
        return self._order.indices((firsts[:, None] + self._offsets).ravel())


class _ShardPrefetcher:
    """Background thread that fetches shards before they are read; its errors are left to the reader to meet again."""

    def __init__(self, reader: SampleReader) -> None:
        self._reader = reader
        self._requests: queue.Queue[Ints | None] = queue.Queue()
        threading.Thread(target=self._run, name="bali-ds fetch", daemon=True).start()

    def fetch(self, sample_rows: Ints) -> None:
        self._requests.put(sample_rows)

    def close(self) -> None:
        while not self._requests.empty():
            self._requests.get_nowait()
        self._requests.put(None)

    def _run(self) -> None:
        while (sample_rows := self._requests.get()) is not None:
            with suppress(InputError):
                self._reader.fetch(sample_rows)
