"""Numbers of few bits, back to back in 64-bit words."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_WORD = 64
_BLOCK = 2**20


def bits_for(count: int) -> int:
    """Return how many bits the numbers below `count` take, at least one."""
    return max((count - 1).bit_length(), 1)


def packed_length(count: int, width: int) -> int:
    """Return how many words hold `count` numbers of `width` bits: whole groups of 64 numbers, and one word more."""
    return -(-count // _WORD) * width + 1


def pack(values: NDArray[np.uint64], width: int) -> NDArray[np.uint64]:
    """Return words, uint64 [packed_length(n, width)]; bit i * width of them is the lowest bit of value i.

    Args:
        values: uint64 [n], each below 2**width.
        width: 1 to 64.
    """
    words = np.zeros(packed_length(values.size, width), np.uint64)
    for start in range(0, values.size, _BLOCK):
        block = values[start : start + _BLOCK]
        first, size = start // _WORD * width, -(-block.size // _WORD)
        # 64 numbers fill `width` words, so that each column of such groups lies at the same bits of the same words.
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
    """Return the numbers at positions, uint64 of the shape of `positions` (int64, all within what was packed)."""
    bits = positions * width
    word, shift = bits >> 6, (bits & 63).astype(np.uint64)
    # Clipping spares the check of each position. The upper part is shifted twice: a shift by 64 is undefined.
    found = words.take(word, mode="clip") >> shift
    found |= words.take(word + 1, mode="clip") << np.uint64(1) << (np.uint64(_WORD - 1) - shift)
    return found & np.uint64(2**width - 1)
