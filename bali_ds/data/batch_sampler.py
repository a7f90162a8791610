"""The steps of one rank: which samples each takes and the arrays they become. A worker holds one, or the loader."""

import itertools
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bali_ds.data.collator import BatchArrays, Collator
from bali_ds.data.mixture import Mixture
from bali_ds.data.ragged import Ints
from bali_ds.data.reader import SampleReader
from bali_ds.data.sample_validation import Replacement
from bali_ds.data.sampler import Position, Schedule, VisitOrder, Visits, rank_share
from bali_ds.data.settings import StreamSettings
from bali_ds.errors import InputError
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.shards.shard_set import ShardSet

# Far enough for a shard to arrive while these steps are taken, near enough for the cache to hold what lies between.
_STEPS_AHEAD = 32
# What an operation on arrays costs, however short they are, is paid once for so many samples.
_SAMPLES_AT_ONCE = 256


class StepArrays(NamedTuple):
    """One step of one rank: where the data stand after it, its micro-batches, and the bad samples it met."""

    position_after: Position
    micro_batches: tuple[BatchArrays, ...]
    replaced: tuple[Replacement, ...] = ()


@dataclass(frozen=True)
class Share:
    """The part of every global batch that falls to one rank.

    Attributes:
        global_batch: samples of a step over all ranks.
        micro_batches: micro-batches that the rank's part is split into.
        rank: of this process.
        world_size: number of ranks.
    """

    global_batch: int
    micro_batches: int = 1
    rank: int = 0
    world_size: int = 1


class RankSteps:
    """Any step of a rank in constant time; steps count from `start`."""

    def __init__(
        self, shards: ShardSet | Mixture, graph: KnowledgeGraph, settings: StreamSettings, share: Share, start: Position
    ) -> None:
        mixture, self._chunks = Mixture.of(shards), share.micro_batches
        self._offsets = rank_share(share.global_batch, share.micro_batches, share.rank, share.world_size)
        self._collator = Collator.of(mixture, graph, settings)
        self._order = VisitOrder(mixture, settings)
        self.schedule = Schedule(self._order.size, share.global_batch, start)
        self._ahead = _Ahead(self._collator.reader) if self._collator.reader.remote else None

    def __getitem__(self, step: int) -> StepArrays:
        """Return a step.

        Raises:
            InputError: the shards cannot be read.
        """
        return self.take([step])[0]

    def run(self, first: int = 0, stride: int = 1) -> Iterator[StepArrays]:
        """Yield the steps `first`, `first + stride`, ... without end; steps of few samples are made several at once.

        Raises:
            InputError: the shards cannot be read.
        """
        together = max(1, _SAMPLES_AT_ONCE // self._offsets.size)
        for begin in itertools.count(first, together * stride):
            yield from self.take(range(begin, begin + together * stride, stride))

    def take(self, numbers: Sequence[int]) -> list[StepArrays]:
        """Return some steps, made together.

        Raises:
            InputError: the shards cannot be read.
        """
        if self._ahead:
            distance = numbers[-1] - numbers[0] + _STEPS_AHEAD
            self._ahead.fetch(self._visits([number + distance for number in numbers]).rows)
        made = self._collator.collate(self._visits(numbers), self._chunks * len(numbers))
        steps = []
        for place, number in enumerate(numbers):
            batches, replaced = zip(*made[place * self._chunks : (place + 1) * self._chunks], strict=True)
            steps.append(StepArrays(self.schedule.begin(number + 1), batches, tuple(itertools.chain(*replaced))))
        return steps

    def close(self) -> None:
        """Fetch nothing more ahead."""
        if self._ahead:
            self._ahead.close()

    def _visits(self, numbers: Sequence[int]) -> Visits:
        begins = [self.schedule.begin(number) for number in numbers]
        firsts = np.array([begin.epoch * self._order.size + begin.samples_seen for begin in begins], np.int64)
        return self._order.visits((firsts[:, None] + self._offsets).ravel())


class _Ahead:
    """A thread that fetches shards before they are read; what it cannot fetch, the reader meets and reports."""

    def __init__(self, reader: SampleReader) -> None:
        self._reader = reader
        self._wanted: queue.Queue[Ints | None] = queue.Queue()
        threading.Thread(target=self._run, name="bali-ds fetch", daemon=True).start()

    def fetch(self, rows: Ints) -> None:
        self._wanted.put(rows)

    def close(self) -> None:
        while not self._wanted.empty():
            self._wanted.get_nowait()
        self._wanted.put(None)

    def _run(self) -> None:
        while (rows := self._wanted.get()) is not None:
            with suppress(InputError):
                self._reader.fetch(rows)
