"""The entries of neighbor lists as they are stored: each one number, packed to the bit.

A kind is a relation together with the source that states it. An entry is its kind, then its neighbor, in as many bits
as the largest of each in the graph takes: 22 bits for four million concepts, 12 for two thousand kinds in both
directions, so that a fact costs 8.5 bytes from both of its ends.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bali_ds.errors import InputError
from bali_ds.graph.bit_packing import bits_for, pack, packed_length, unpack

_BLOCK = 2**20


def pack_entries(
    kinds: NDArray[Any], neighbors: NDArray[np.int32], num_kinds: int, num_concepts: int
) -> NDArray[np.uint64]:
    """Return entries as words.

    Args:
        kinds: int [2E]; from `num_kinds` on they are kinds read from the tail.
        neighbors: int32 [2E].
        num_kinds: K.
        num_concepts: C.
    """
    low = bits_for(num_concepts)
    values = kinds.astype(np.uint64)
    values <<= np.uint64(low)
    values |= neighbors.astype(np.uint64)
    return pack(values, low + bits_for(2 * num_kinds))


class NeighborEntries:
    """All entries of all neighbor lists of a graph: 2E, both ends of each of E facts.

    Args:
        words: uint64, what `pack_entries` returned.
        size: 2E.
        num_concepts: C.
        relations: int32 [2K], the relation id of each kind, those read from the tail last.
        sources: [2K], the source of each kind.
        file: where the words lie, for messages.
    """

    def __init__(
        self,
        words: NDArray[np.uint64],
        size: int,
        num_concepts: int,
        relations: NDArray[np.int32],
        sources: NDArray[Any],
        file: Path,
    ) -> None:
        self.size = size
        self.relations = relations
        self.sources = sources
        self._words = words
        self._num_concepts = num_concepts
        self._low = bits_for(num_concepts)
        self._width = self._low + bits_for(relations.size)
        self._file = file
        if size < 0 or size % 2 or words.size != packed_length(size, self._width):
            raise self._damaged()

    def read(self, positions: NDArray[Any]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return neighbors int32 and kinds int64 at positions from 0 to 2E - 1, both of the shape of `positions`.

        Raises:
            InputError: what is stored there is no concept or no kind of the graph.
        """
        packed = unpack(self._words, self._width, positions)
        neighbors = (packed & np.uint64(2**self._low - 1)).astype(np.int32)
        kinds = (packed >> np.uint64(self._low)).astype(np.int64)
        if neighbors.size and (neighbors.max() >= self._num_concepts or kinds.max() >= self.relations.size):
            raise self._damaged()
        return neighbors, kinds

    def _damaged(self) -> InputError:
        return InputError(f"{self._file}: is damaged; build the graph again")


class EntryColumn:
    """One field of all entries, read like a one-dimensional array: by position, slice or array of positions.

    Args:
        entries: the entries.
        of_kind: [2K], the field of each kind; the neighbors themselves without it.
    """

    def __init__(self, entries: NeighborEntries, of_kind: NDArray[Any] | None = None) -> None:
        self._entries = entries
        self._of_kind = of_kind

    def __len__(self) -> int:
        return self._entries.size

    def __getitem__(self, selection: int | np.integer[Any] | slice | NDArray[Any]) -> Any:
        """Return one value, or an array of values.

        Raises:
            IndexError: a position is not from 0 to the number of entries.
            InputError: the graph is damaged there.
        """
        if isinstance(selection, slice):
            wanted = range(*selection.indices(len(self)))
            found = np.empty(len(wanted), np.int32 if self._of_kind is None else self._of_kind.dtype)
            for start in range(0, found.size, _BLOCK):
                block = wanted[start : start + _BLOCK]
                found[start : start + _BLOCK] = self._read(np.arange(block.start, block.stop, block.step))
            return found
        positions = np.asarray(selection, np.int64)
        if positions.size and not 0 <= positions.min() <= positions.max() < len(self):
            raise IndexError(f"entries {positions.min()} to {positions.max()} of {len(self)}")
        return self._read(positions)[()]

    def _read(self, positions: NDArray[Any]) -> NDArray[Any]:
        neighbors, kinds = self._entries.read(positions)
        return neighbors if self._of_kind is None else self._of_kind[kinds]
