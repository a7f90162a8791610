"""The steps of one rank: which samples each takes and the arrays they become. A worker holds one, or the loader."""

import queue
import threading
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from bali_ds.errors import InputError
from bali_ds.graph.store import KnowledgeGraph
from bali_ds.shards.store import ShardSet
from bali_ds.stream.collation import BatchArrays, Collator
from bali_ds.stream.order import EpochOrder, Position, Schedule, epoch_order, rank_share
from bali_ds.stream.ragged import Ints
from bali_ds.stream.reader import SampleReader
from bali_ds.stream.settings import StreamSettings
from bali_ds.stream.soundness import Replacement

# Far enough for a shard to arrive while these steps are taken, near enough for the cache to hold what lies between.
_STEPS_AHEAD = 32


class StepArrays(NamedTuple):
    """One step of one rank: where the data stand after it, its micro-batches, and the bad samples it met."""

    position_after: Position
    chunks: tuple[BatchArrays, ...]
    replaced: tuple[Replacement, ...] = ()


@dataclass(frozen=True)
class Share:
    """The part of every global batch that falls to one rank.

    Attributes:
        global_batch: samples of a step over all ranks.
        chunks: micro-batches that the rank's part is split into.
        rank: of this process.
        world_size: number of ranks.
    """

    global_batch: int
    chunks: int = 1
    rank: int = 0
    world_size: int = 1


class RankSteps:
    """Any step of a rank in constant time; steps count from `start`."""

    def __init__(
        self, shards: ShardSet, graph: KnowledgeGraph, settings: StreamSettings, share: Share, start: Position
    ) -> None:
        self._shards, self._settings, self._chunks = shards, settings, share.chunks
        self._offsets = rank_share(share.global_batch, share.chunks, share.rank, share.world_size)
        self._split = shards.split(settings.split)
        self.schedule = Schedule(len(self._split), share.global_batch, start)
        self._collator = Collator.of(shards, graph, settings)
        self._order = lru_cache(2)(self._epoch_order)
        self._ahead = _Ahead(self._collator.reader) if self._collator.reader.remote else None

    def __getitem__(self, step: int) -> StepArrays:
        """Return a step.

        Raises:
            InputError: the shards cannot be read.
        """
        begin = self.schedule.begin(step)
        rows = self._rows(begin)
        if self._ahead:
            self._ahead.fetch(self._rows(self.schedule.begin(step + _STEPS_AHEAD)))
        chunks, replaced = self._collator.collate(rows, begin.epoch, self._chunks)
        return StepArrays(self.schedule.begin(step + 1), chunks, replaced)

    def close(self) -> None:
        """Fetch nothing more ahead."""
        if self._ahead:
            self._ahead.close()

    def _rows(self, begin: Position) -> Ints:
        return self._order(begin.epoch).rows(begin.samples_seen + self._offsets) + self._split.start

    def _epoch_order(self, epoch: int) -> EpochOrder:
        return epoch_order(self._shards, self._settings.split, self._settings.seed, epoch, self._settings.window)


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
