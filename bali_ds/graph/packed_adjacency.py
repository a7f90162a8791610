"""Bit-packed adjacency lists: every neighbor and the kind of its edge in as few bits as the graph allows.

A kind is a relation together with the source that states it. A packed value holds the kind in its upper and the
neighbor in its lower bits, each as wide as its largest value in the graph: 22 bits for four million concepts and 12 for
two thousand kinds in both directions, so that a fact costs 8.5 bytes for both of its ends.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bali_ds.errors import InputError

_WORD = 64
_BLOCK = 2**20


def bits_for(count: int) -> int:
    """Return the number of bits that hold the integers below `count`, at least one."""
    return max((count - 1).bit_length(), 1)


def packed_length(count: int, width: int) -> int:
    """Return the number of words for `count` values of `width` bits: whole groups of 64 values, and one more word."""
    return -(-count // _WORD) * width + 1


def pack(values: NDArray[np.uint64], width: int) -> NDArray[np.uint64]:
    """Return words, uint64 [packed_length(n, width)]; bit i * width is the lowest bit of value i.

    Args:
        values: uint64 [n], each below 2**width.
        width: 1 to 64.
    """
    words = np.zeros(packed_length(values.size, width), np.uint64)
    for start in range(0, values.size, _BLOCK):
        block = values[start : start + _BLOCK]
        first, size = start // _WORD * width, -(-block.size // _WORD)
        # 64 values fill exactly `width` words, so column c of all groups starts at the same bit of the same word.
        columns = np.zeros((size, _WORD), np.uint64)
        columns.ravel()[: block.size] = block
        groups = words[first : first + size * width].reshape(size, width)
        for column in range(_WORD):
            word, shift = divmod(column * width, _WORD)
            groups[:, word] |= columns[:, column] << np.uint64(shift)
            if shift + width > _WORD:
                groups[:, word + 1] |= columns[:, column] >> np.uint64(_WORD - shift)
    return words


def unpack(words: NDArray[np.uint64], width: int, positions: NDArray[Any]) -> NDArray[np.uint64]:
    """Return the values at `positions` (int64, all within what was packed), uint64 of the same shape."""
    bits = positions * width
    word, shift = bits >> 6, (bits & 63).astype(np.uint64)
    # mode="clip" skips the bounds check of each position. The upper part is shifted twice: a shift by 64 is undefined.
    found = words.take(word, mode="clip") >> shift
    found |= words.take(word + 1, mode="clip") << np.uint64(1) << (np.uint64(_WORD - 1) - shift)
    return found & np.uint64(2**width - 1)


def pack_adjacency(
    kinds: NDArray[Any], neighbors: NDArray[np.int32], num_kinds: int, num_concepts: int
) -> NDArray[np.uint64]:
    """Return the words of adjacency lists.

    Args:
        kinds: int [2E]; values from `num_kinds` on are kinds read from the tail.
        neighbors: int32 [2E], concept ids.
        num_kinds: K.
        num_concepts: C.
    """
    low = bits_for(num_concepts)
    values = kinds.astype(np.uint64)
    values <<= np.uint64(low)
    values |= neighbors.astype(np.uint64)
    return pack(values, low + bits_for(2 * num_kinds))


class PackedAdjacency:
    """The adjacency lists of a graph, one after the other: 2E positions, both ends of each of E facts.

    Args:
        words: uint64, as `pack_adjacency` returns them.
        size: 2E.
        num_concepts: C.
        relations: int32 [2K], the relation id of each kind, those read from the tail last.
        sources: [2K], the source of each kind.
        file: the file that holds the words, for messages.
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
            InputError: a stored neighbor or kind is not in the graph.
        """
        packed = unpack(self._words, self._width, positions)
        neighbors = (packed & np.uint64(2**self._low - 1)).astype(np.int32)
        kinds = (packed >> np.uint64(self._low)).astype(np.int64)
        if neighbors.size and (neighbors.max() >= self._num_concepts or kinds.max() >= self.relations.size):
            raise self._damaged()
        return neighbors, kinds

    def _damaged(self) -> InputError:
        return InputError(f"{self._file}: is damaged; build the graph again")


class AdjacencyColumn:
    """One field of packed adjacency lists, indexed like a one-dimensional array: by position, slice or integer array.

    Args:
        adjacency: the adjacency lists.
        of_kind: [2K], the field of each kind; without it the column holds the neighbors.
    """

    def __init__(self, adjacency: PackedAdjacency, of_kind: NDArray[Any] | None = None) -> None:
        self._adjacency = adjacency
        self._of_kind = of_kind

    def __len__(self) -> int:
        return self._adjacency.size

    def __getitem__(self, selection: int | np.integer[Any] | slice | NDArray[Any]) -> Any:
        """Return one value, or an array of values.

        Raises:
            IndexError: a position is below 0 or not below the length.
            InputError: the graph is damaged at a position.
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
            raise IndexError(f"adjacency positions {positions.min()} to {positions.max()} of {len(self)}")
        return self._read(positions)[()]

    def _read(self, positions: NDArray[Any]) -> NDArray[Any]:
        neighbors, kinds = self._adjacency.read(positions)
        return neighbors if self._of_kind is None else self._of_kind[kinds]
