"""Many samples at once out of memory-mapped tars, every array found by arithmetic from the sample table."""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bali_ds.errors import InputError
from bali_ds.shards.layout import member_offsets
from bali_ds.shards.store import ShardSet
from bali_ds.stream.ragged import Ints, ranges, starts

# Each mapping holds a file descriptor, of which a process often has 1024; two for each lane of the order fit well.
_OPEN_TARS = 256


class Samples(NamedTuple):
    """Samples as they are stored, in flat arrays.

    Attributes:
        rows: int64 [n], where they stand in the sample table.
        tokens: int64 [T], all their tokens.
        lengths: int64 [n], tokens of each.
        mentions: int32 [M, 3]: first token within the sample, one past the last, concept id.
        mention_counts: int64 [n].
        edges: int32 [E, 3]: concept id, relation id, neighbour id.
        edge_counts: int64 [n].
    """

    rows: Ints
    tokens: Ints
    lengths: Ints
    mentions: NDArray[np.int32]
    mention_counts: Ints
    edges: NDArray[np.int32]
    edge_counts: Ints


class SampleReader:
    """Reads samples of one shard set; tars are mapped when first needed, the page cache is shared by all processes."""

    def __init__(self, shards: ShardSet) -> None:
        self._shards = shards
        self._mapped = lru_cache(_OPEN_TARS)(self._map)

    def read(self, rows: Ints) -> Samples:
        """Return the samples at rows of the sample table, in the order asked for.

        Raises:
            InputError: a tar is missing or not of the size that the index gives.
        """
        table = self._shards.samples[rows]
        lengths, mentions, edges = (table[name].astype(np.int64) for name in ("tokens", "mentions", "edges"))
        dtype = self._shards.token_dtype
        at = member_offsets(table, dtype.itemsize)
        numbers = self._shards.shard_numbers(rows)
        order = np.argsort(numbers, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)
        return Samples(
            rows,
            self._gather(groups, numbers, at.tokens // dtype.itemsize, lengths, dtype).astype(np.int64),
            lengths,
            self._gather(groups, numbers, at.mentions // 4, mentions * 3, np.dtype("<i4")).reshape(-1, 3),
            mentions,
            self._gather(groups, numbers, at.edges // 4, edges * 3, np.dtype("<i4")).reshape(-1, 3),
            edges,
        )

    def _gather(
        self, groups: list[Ints], numbers: Ints, begins: Ints, lengths: Ints, dtype: np.dtype[Any]
    ) -> NDArray[Any]:
        """Collect one ragged array, tar by tar: `begins` and `lengths` count elements of `dtype`."""
        gathered = np.empty(int(lengths.sum()), dtype)
        targets = starts(lengths)
        for group in groups:
            tar = self._mapped(int(numbers[group[0]])).view(dtype)
            gathered[ranges(targets[group], lengths[group])] = tar[ranges(begins[group], lengths[group])]
        return gathered

    def _map(self, number: int) -> NDArray[np.uint8]:
        shard = self._shards.shards[number]
        path = self._shards.path / shard.name
        try:
            mapped = np.memmap(path, np.uint8, "r")
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read: {error}") from error
        if mapped.size != shard.bytes:
            raise InputError(f"{path}: has {mapped.size} bytes, the index says {shard.bytes}; copy or build it again")
        return np.asarray(mapped)
