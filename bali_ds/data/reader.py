"""Reader of samples: many at once from memory-mapped tars; the sample table gives the offset of every array."""

import logging
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bali_ds.data.mixture import Mixture
from bali_ds.data.remote import Mirror
from bali_ds.data.sequences import Ints, ranges, starts
from bali_ds.errors import InputError
from bali_ds.npy import map_bytes
from bali_ds.shards.layout import BLOCK, NPY_HEADER, member_offsets
from bali_ds.shards.shard_index import REBUILD

logger = logging.getLogger(__name__)

# Each mapping holds a file descriptor, of which a process often has 1024; two for each lane of the order fit well.
_OPEN_TARS = 256
_WAITS = (1, 2, 4, 8)
_INT32 = np.dtype("<i4")
_MOST_OVERLAP = 2
_NPY_MARK = np.frombuffer(b"\x93NUM", _INT32)[0]


class Samples(NamedTuple):
    """Samples as they are stored, in flat arrays.

    Attributes:
        sample_rows: int64 [n], their rows in the sample table.
        tokens: int64 [T], all their tokens.
        lengths: int64 [n], tokens of each.
        mentions: int32 [M, 3]: first token within the sample, one past the last, concept id.
        mention_counts: int64 [n].
        edges: int32 [E, 3]: concept id, relation id, neighbor id.
        edge_counts: int64 [n].
        found: bool [n], whether the arrays are where the sample table says.
    """

    sample_rows: Ints
    tokens: Ints
    lengths: Ints
    mentions: NDArray[np.int32]
    mention_counts: Ints
    edges: NDArray[np.int32]
    edge_counts: Ints
    found: NDArray[np.bool_]

    @property
    def mention_concept_ids(self) -> NDArray[np.int32]:
        """Int32 [M], the concept id of each mention."""
        return self.mentions[:, 2]


@dataclass(frozen=True)
class _Part:
    """One ragged array of all samples, gathered tar by tar; all counts are of elements."""

    begins: Ints
    lengths: Ints
    targets: Ints
    gathered: NDArray[Any]

    @classmethod
    def of(cls, offsets: Ints, lengths: Ints, dtype: np.dtype[Any]) -> "_Part":
        return cls(offsets // dtype.itemsize, lengths, starts(lengths), np.empty(int(lengths.sum()), dtype))

    def gather(self, tar: NDArray[np.uint8], group: Ints) -> None:
        lengths = self.lengths[group]
        sources = ranges(self.begins[group], lengths)
        self.gathered[ranges(self.targets[group], lengths)] = tar.view(self.gathered.dtype)[sources]


class SampleReader:
    """Reads samples of a mixture; tars are mapped when first needed, the page cache is shared by all processes."""

    def __init__(self, shards: Mixture) -> None:
        self._shards = shards
        self._token_dtype = shards.sets[0].token_dtype
        self._longest = np.array([each.index["max_tokens"] for each in shards.sets], np.int64)
        self._tar_bytes = np.array([shard.bytes for shard in shards.shards], np.int64)
        self._tars: dict[int, NDArray[np.uint8]] = {}

    def read(self, sample_rows: Ints) -> Samples:
        """Return the samples at rows of the sample table, in that order.

        A sample whose entry in the table is impossible, or whose arrays do not begin where the entry says, is returned
        as not found; in the first case it is empty.

        Raises:
            InputError: a tar is missing or not of the size that the index gives, or samples overlap.
        """
        numbers = self._shards.shard_numbers(sample_rows)
        table, possible = self._table(sample_rows, numbers)
        dtype = self._token_dtype
        at = member_offsets(table, dtype.itemsize)
        marks = np.stack([at.tokens, at.mentions, at.edges]) - NPY_HEADER
        lengths, mentions, edges = (table[name].astype(np.int64) for name in ("tokens", "mentions", "edges"))
        self._check_sizes(sample_rows, at.meta - table["offset"], numbers)
        parts = (
            _Part.of(at.tokens, lengths, dtype),
            _Part.of(at.mentions, 3 * mentions, _INT32),
            _Part.of(at.edges, 3 * edges, _INT32),
        )
        order = np.argsort(numbers, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1):
            tar = self._tar(int(numbers[group[0]]))
            possible[group] &= (tar.view(_INT32)[marks[:, group] // 4] == _NPY_MARK).all(axis=0)
            for part in parts:
                part.gather(tar, group)
        tokens, mention_rows, edge_rows = (part.gathered for part in parts)
        return Samples(
            sample_rows, tokens.astype(np.int64), lengths, mention_rows.reshape(-1, 3), mentions,
            edge_rows.reshape(-1, 3), edges, possible,
        )  # fmt: skip

    @property
    def remote(self) -> bool:
        """Whether tars have to be fetched before they are read."""
        return any(each.source for each in self._shards.sets)

    def fetch(self, sample_rows: Ints) -> None:
        """Fetch the tars of samples that will be read soon.

        Raises:
            InputError: a tar cannot be fetched.
        """
        for number in np.unique(self._shards.shard_numbers(sample_rows)).tolist():
            self._fetch(number)

    def _fetch(self, number: int) -> None:
        if mirror := Mirror.of(self._shards.set_of_tar(number)):
            mirror.fetch(self._shards.shards[number])

    def _table(self, sample_rows: Ints, numbers: Ints) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
        """Return entries of the sample table, and which of them are possible; the others are emptied."""
        table = self._shards.samples(sample_rows)
        longest = self._longest[self._shards.set_numbers(sample_rows)]
        at = member_offsets(table, self._token_dtype.itemsize)
        positive = (table["offset"] >= 0) & (table["mentions"] >= 0) & (table["edges"] >= 0)
        fitting = (table["tokens"] >= 2) & (table["tokens"] <= longest)
        # an offset near 2**63 makes `at` overflow, so it is bounded itself
        inside = (table["offset"] <= self._tar_bytes[numbers]) & (at.meta <= self._tar_bytes[numbers] - BLOCK)
        inside &= table["offset"] % BLOCK == 0
        possible = positive & fitting & inside
        if not possible.all():
            table = table.copy()
            table[~possible] = np.zeros((), table.dtype)
        return table, possible

    def _check_sizes(self, sample_rows: Ints, sizes: Ints, numbers: Ints) -> None:
        """Refuse samples that overlap so much that they would take more memory than their tars."""
        _, first = np.unique(sample_rows, return_index=True)
        if sizes[first].sum() > _MOST_OVERLAP * self._tar_bytes[np.unique(numbers)].sum():
            raise InputError(
                f"{self._shards.name}: the sample table describes more bytes than its tars have; {REBUILD}"
            )

    def _tar(self, number: int) -> NDArray[np.uint8]:
        """Return a tar, mapped; the tars used last stay mapped, unless they were evicted from a cache."""
        tar = self._tars.pop(number, None)
        if tar is None:
            tar = self._map(number)
            if self.remote:
                self._tars = {old: kept for old, kept in self._tars.items() if self._shards.tar(old).exists()}
            if len(self._tars) == _OPEN_TARS:
                del self._tars[next(iter(self._tars))]
        self._tars[number] = tar
        return tar

    def _map(self, number: int) -> NDArray[np.uint8]:
        """Map a tar; try again for a while, as a file server may be away or a cache may have evicted the tar."""
        shard = self._shards.shards[number]
        path = self._shards.tar(number)
        for wait in (*_WAITS, None):
            self._fetch(number)
            try:
                return map_bytes(path, shard.bytes)
            except InputError as error:
                problem = str(error).removeprefix(f"{path}: ")
            if wait is not None:
                logger.warning("%s: %s; trying again in %s s", path, problem, wait)
                time.sleep(wait)
        raise InputError(f"{path}: {problem}; copy or build it again")
