"""The steps of one rank: which samples each takes and the arrays they become. A worker holds one, or the loader."""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from bali_ds.graph.store import KnowledgeGraph
from bali_ds.shards.store import ShardSet
from bali_ds.stream.collation import BatchArrays, Collator
from bali_ds.stream.order import EpochOrder, Position, Schedule, epoch_order, rank_share
from bali_ds.stream.settings import StreamSettings
from bali_ds.stream.soundness import Replacement


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

    def __getitem__(self, step: int) -> StepArrays:
        """Return a step.

        Raises:
            InputError: the shards cannot be read.
        """
        begin = self.schedule.begin(step)
        rows = self._order(begin.epoch).rows(begin.samples_seen + self._offsets) + self._split.start
        collated = [self._collator.collate(part, begin.epoch) for part in np.split(rows, self._chunks)]
        replaced = tuple(replacement for _, replacements in collated for replacement in replacements)
        return StepArrays(self.schedule.begin(step + 1), tuple(arrays for arrays, _ in collated), replaced)

    def _epoch_order(self, epoch: int) -> EpochOrder:
        return epoch_order(self._shards, self._settings.split, self._settings.seed, epoch, self._settings.window)
