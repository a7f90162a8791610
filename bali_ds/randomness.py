"""Counter-based random numbers: pure functions of uint64 keys, without state, equal on every machine.

`derive` hashes seeds, epochs, sample rows and a word for the purpose into keys; the other functions map keys to random
values. The mixing step is the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
"""

import hashlib
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Keys = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

# With fewer rounds or a smaller domain, permutations of small ranges fail a chi-square test.
_ROUNDS = 10
_SMALLEST_DOMAIN = 64


def derive(*parts: ArrayLike | str) -> Keys:
    """Return keys from integers, integer arrays (broadcast together) and words.

    The order of the parts matters: `derive(a, b)` differs from `derive(b, a)`. The result has dtype uint64, the
    broadcast shape of the parts, and at least one dimension.
    """
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = _mix((state ^ _as_key(part)) + _GOLDEN)
    return state


def _as_key(part: ArrayLike | str) -> Keys:
    if isinstance(part, str):
        return _word_key(part)
    return _mix(np.atleast_1d(np.asarray(part)).astype(np.uint64) + _GOLDEN)


@cache
def _word_key(word: str) -> Keys:
    digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
    return np.frombuffer(digest, "<u8").astype(np.uint64)


def _mix(values: Keys) -> Keys:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def uniform(keys: Keys) -> NDArray[np.float64]:
    """Return one float64 in [0, 1) per key, with 53 random bits."""
    return (keys >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(keys: Keys, bounds: ArrayLike) -> NDArray[np.int64]:
    """Return one integer in [0, bound) per key, 0 for a bound of 0.

    The bias for a bound b is less than b / 2**53.
    """
    return (uniform(keys) * np.asarray(bounds)).astype(np.int64)


def choose(keys: Keys, sizes: ArrayLike, count: int) -> NDArray[np.int64]:
    """Sample `count` distinct integers from each range(size) uniformly, by Floyd's algorithm on all rows at once.

    Args:
        keys: uint64 [n], one per row.
        sizes: int [n], sizes of the ranges.
        count: number of samples per row.

    Returns:
        int64 [n, count]; a row with size <= `count` holds the whole range in order, padded with -1.
    """
    sizes = np.broadcast_to(np.asarray(sizes, np.int64), keys.shape)
    everything = np.arange(count)[:, None]
    column_keys = derive(keys, everything)
    chosen = np.empty((count, keys.shape[0]), np.int64)
    for column in range(count):
        highest = sizes - (count - column)
        draw = below(column_keys[column], highest + 1)
        if column:
            taken = (chosen[:column] == draw).any(axis=0)
            draw = np.where(taken, highest, draw)
        chosen[column] = draw
    few = np.flatnonzero(sizes <= count)
    chosen[:, few] = np.where(everything < sizes[few], everything, -1)
    return np.ascontiguousarray(chosen.T)


def permute(positions: ArrayLike, size: int | NDArray[np.int64], keys: Keys) -> NDArray[np.int64]:
    """Return the image of each position under a keyed permutation of range(size).

    A Feistel network over the next power of two is applied until the result is in range (cycle walking), so the memory
    does not depend on `size`.

    Args:
        positions: int [n], each in [0, size).
        size: length of the permuted range, one for all positions or one per position.
        keys: uint64 [1] or [n]; positions with equal key and size share one permutation.
    """
    values = np.array(positions, dtype=np.uint64, ndmin=1)
    sizes = np.broadcast_to(np.asarray(size, np.uint64), values.shape)
    bits = np.ceil(np.log2(np.maximum(sizes, _SMALLEST_DOMAIN).astype(np.float64))).astype(np.uint64)
    rounds = np.broadcast_to(derive(np.atleast_1d(keys), np.arange(_ROUNDS)[:, None]), (_ROUNDS, values.size))
    pending = np.arange(values.size)
    while pending.size:
        values[pending] = _feistel(values[pending], bits[pending], rounds[:, pending])
        pending = pending[values[pending] >= sizes[pending]]
    return values.astype(np.int64)


def _feistel(values: Keys, bits: Keys, rounds: Keys) -> Keys:
    """Permute integers of `bits` bits; with an even number of rounds, halves of unequal width end in their places."""
    low = bits >> np.uint64(1)
    right_mask = (np.uint64(1) << low) - np.uint64(1)
    left_mask = (np.uint64(1) << (bits - low)) - np.uint64(1)
    left, right = values >> low, values & right_mask
    for key in rounds:
        left, right = right, left ^ (_mix(key + right) & left_mask)
        left_mask, right_mask = right_mask, left_mask
    return (left << low) | right
