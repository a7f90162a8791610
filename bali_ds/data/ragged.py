"""Rows of unequal length in flat arrays: the few operations that the stream is made of."""

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def starts(lengths: Ints) -> Ints:
    """Return where each row begins in the flat array, int64 [n]."""
    return np.cumsum(lengths) - lengths


def within(lengths: Ints) -> Ints:
    """Return the place of each element within its row: 0, 1, ..., lengths[0] - 1, 0, 1, ...; int64 [sum(lengths)]."""
    return np.arange(int(lengths.sum())) - np.repeat(starts(lengths), lengths)


def ranges(begins: Ints, lengths: Ints) -> Ints:
    """Return the indices begins[0], begins[0] + 1, ..., row after row; int64 [sum(lengths)]."""
    return np.arange(int(lengths.sum())) + np.repeat(begins - starts(lengths), lengths)
