"""What is known of a piece of text between two spaces, found out once and gathered for whole batches of texts.

Most words of a text have been seen before. Tokenizer and linker look each distinct piece up in a table and leave the
rest to a few operations on arrays.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_LIMIT = 1 << 22
"""Characters of the pieces that are remembered; a table with more starts afresh."""

_Table = NDArray[np.int64]
Analyze = Callable[[str], _Table]
"""From a text to its rows (value, start, end), int64 [n, 3], in the order of the text."""
_AT_ONCE = 1 << 10
"""Pieces that are analyzed as one text."""


class Gathered(NamedTuple):
    """The rows of texts, one text after the other.

    Attributes:
        values: int64 [n].
        starts, ends: int64 [n], code points of the row's text, end exclusive.
        bounds: int64 [texts + 1]; text t has the rows bounds[t] to bounds[t + 1] - 1.
    """

    values: _Table
    starts: _Table
    ends: _Table
    bounds: _Table


class PieceTable:
    """Remembers the rows of pieces. `analyze` must give a piece the same rows wherever it stands, and none across."""

    def __init__(self, analyze: Analyze) -> None:
        self._analyze = analyze
        self._forget()

    def _forget(self) -> None:
        self._numbers: dict[str, int] = {}
        self._characters = 0
        self._num_rows = 0
        self._rows = np.empty((1 << 10, 3), np.int64)  # value, start, end
        self._pieces = np.empty((1 << 10, 3), np.int64)  # first row, number of rows, characters and the space

    def __call__(self, texts: Sequence[str]) -> Gathered:
        """Return the rows of texts."""
        numbers = self._look_up(" ".join(texts).split(" ")) if texts else np.empty(0, np.int64)
        firsts, counts, sizes = self._pieces[numbers].T
        ends = np.cumsum(counts)
        rows = self._rows[np.repeat(firsts - ends + counts, counts) + np.arange(counts.sum())]
        row_ends = np.append(0, ends)
        bounds = row_ends[np.cumsum([0, *(text.count(" ") + 1 for text in texts)])]
        begins = np.cumsum([0, *(len(text) + 1 for text in texts)])[:-1]
        shift = np.repeat(np.cumsum(sizes) - sizes, counts) - np.repeat(begins, np.diff(bounds))
        return Gathered(rows[:, 0], rows[:, 1] + shift, rows[:, 2] + shift, bounds)

    def _look_up(self, pieces: list[str]) -> _Table:
        known = self._numbers
        try:
            return np.array([known[piece] for piece in pieces], np.int64)
        except KeyError:
            self._learn(pieces)
            return np.array([self._numbers[piece] for piece in pieces], np.int64)

    def _learn(self, pieces: list[str]) -> None:
        if self._characters > _LIMIT:
            self._forget()
        new = [piece for piece in dict.fromkeys(pieces) if piece not in self._numbers]
        for start in range(0, len(new), _AT_ONCE):
            self._add(new[start : start + _AT_ONCE])

    def _add(self, new: list[str]) -> None:
        sizes = np.array([len(piece) + 1 for piece in new])
        ends = np.cumsum(sizes)
        rows = self._analyze(" ".join(new))
        owners = np.searchsorted(ends, rows[:, 1], side="right")
        rows[:, 1:] -= (ends - sizes)[owners, None]
        counts = np.bincount(owners, minlength=len(new))
        firsts = self._num_rows + np.cumsum(counts) - counts
        self._pieces = _extended(self._pieces, len(self._numbers), np.stack([firsts, counts, sizes], axis=1))
        self._rows = _extended(self._rows, self._num_rows, rows)
        self._numbers.update(zip(new, range(len(self._numbers), len(self._numbers) + len(new)), strict=True))
        self._num_rows += len(rows)
        self._characters += int(ends[-1])


def _extended(table: _Table, used: int, more: _Table) -> _Table:
    """Return a table with rows behind those in use, in place while there is room."""
    if used + len(more) > len(table):
        grown = np.empty((2 * (used + len(more)), 3), np.int64)
        grown[:used] = table[:used]
        table = grown
    table[used : used + len(more)] = more
    return table
