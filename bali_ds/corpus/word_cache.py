"""Cache of what is known of each space-separated word, gathered for whole batches of texts.

Most words of a text have occurred before. The tokenizer and the dictionary linker look each distinct word up in a table
and do the rest with a few array operations.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_LIMIT = 1 << 22
"""Characters of the cached words; a cache with more is cleared."""

_Table = NDArray[np.int64]
Analyze = Callable[[str], _Table]
"""Maps a text to its rows (value, start, end), int64 [n, 3], in the order of the text."""
_BATCH = 1 << 10
"""Words that are analyzed as one text."""


class TextRows(NamedTuple):
    """The rows of several texts, one text after the other.

    Attributes:
        values: int64 [n].
        starts, ends: int64 [n], code points of the row's text, end exclusive.
        bounds: int64 [texts + 1]; text t has the rows bounds[t] to bounds[t + 1] - 1.
    """

    values: _Table
    starts: _Table
    ends: _Table
    bounds: _Table


class WordCache:
    """Caches the rows of space-separated words.

    Args:
        analyze: must give a word equal rows in every context, and no row that spans two words.
    """

    def __init__(self, analyze: Analyze) -> None:
        self._analyze = analyze
        self._clear()

    def _clear(self) -> None:
        self._word_ids: dict[str, int] = {}
        self._characters = 0
        self._num_rows = 0
        self._rows = np.empty((1 << 10, 3), np.int64)  # value, start, end
        self._words = np.empty((1 << 10, 3), np.int64)  # first row, number of rows, characters including the space

    def __call__(self, texts: Sequence[str]) -> TextRows:
        """Return the rows of texts."""
        word_ids = self._look_up(" ".join(texts).split(" ")) if texts else np.empty(0, np.int64)
        firsts, counts, sizes = self._words[word_ids].T
        ends = np.cumsum(counts)
        rows = self._rows[np.repeat(firsts - ends + counts, counts) + np.arange(counts.sum())]
        row_ends = np.append(0, ends)
        bounds = row_ends[np.cumsum([0, *(text.count(" ") + 1 for text in texts)])]
        text_starts = np.cumsum([0, *(len(text) + 1 for text in texts)])[:-1]
        shift = np.repeat(np.cumsum(sizes) - sizes, counts) - np.repeat(text_starts, np.diff(bounds))
        return TextRows(rows[:, 0], rows[:, 1] + shift, rows[:, 2] + shift, bounds)

    def _look_up(self, words: list[str]) -> _Table:
        known = self._word_ids
        try:
            return np.array([known[word] for word in words], np.int64)
        except KeyError:
            self._add_missing(words)
            return np.array([self._word_ids[word] for word in words], np.int64)

    def _add_missing(self, words: list[str]) -> None:
        if self._characters > _LIMIT:
            self._clear()
        new = [word for word in dict.fromkeys(words) if word not in self._word_ids]
        for start in range(0, len(new), _BATCH):
            self._add(new[start : start + _BATCH])

    def _add(self, new: list[str]) -> None:
        sizes = np.array([len(word) + 1 for word in new])
        ends = np.cumsum(sizes)
        rows = self._analyze(" ".join(new))
        owners = np.searchsorted(ends, rows[:, 1], side="right")
        rows[:, 1:] -= (ends - sizes)[owners, None]
        counts = np.bincount(owners, minlength=len(new))
        firsts = self._num_rows + np.cumsum(counts) - counts
        self._words = _appended(self._words, len(self._word_ids), np.stack([firsts, counts, sizes], axis=1))
        self._rows = _appended(self._rows, self._num_rows, rows)
        self._word_ids.update(zip(new, range(len(self._word_ids), len(self._word_ids) + len(new)), strict=True))
        self._num_rows += len(rows)
        self._characters += int(ends[-1])


def _appended(table: _Table, used: int, rows: _Table) -> _Table:
    """Return a table with `rows` after its first `used` rows, in place while there is room."""
    if used + len(rows) > len(table):
        grown = np.empty((2 * (used + len(rows)), 3), np.int64)
        grown[:used] = table[:used]
        table = grown
    table[used : used + len(rows)] = rows
    return table
