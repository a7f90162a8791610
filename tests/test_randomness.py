"""Keyed randomness; statistics are fixed by their seeds, so the bounds never fail by chance."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bali_ds.randomness import below, choose, derive, permute, uniform


def chi_square(counts):
    counts = np.asarray(counts, float)
    return ((counts - counts.mean()) ** 2 / counts.mean()).sum()


def test_values_never_change():
    # A change here would change order and masks of every running run.
    assert derive(1, "word", [2, 3]).tolist() == [5072341666881092878, 3606015362193416167]
    assert uniform(derive(0, np.arange(3))).tolist() == [0.6561149711801131, 0.91970127789074, 0.07638783888758227]
    assert permute(np.arange(7), 7, derive("order")).tolist() == [0, 3, 1, 6, 5, 4, 2]


def test_derive_depends_on_values_order_and_number_of_parts():
    keys = [derive(1, 2), derive(2, 1), derive(1), derive(1, 2, 0), derive("1", 2), derive(1, "ab"), derive("ab", 1)]
    assert len({int(key[0]) for key in keys}) == len(keys)
    assert derive(5, np.arange(4), "x").shape == (4,)
    assert derive(np.arange(3)[:, None], np.arange(2)).shape == (3, 2)
    assert derive(7, np.arange(100))[42] == derive(7, 42)[0]
    assert np.unique(derive(np.arange(1000)[:, None], np.arange(100))).size == 100_000


def test_uniform_fills_its_range_evenly():
    values = uniform(derive("even", np.arange(100_000)))
    assert values.min() >= 0
    assert values.max() < 1
    assert 50 < chi_square(np.histogram(values, 100, (0, 1))[0]) < 160
    bits = (derive("bits", np.arange(20_000))[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 5 * 0.5 / np.sqrt(20_000)


def test_neighboring_keys_are_unrelated():
    values = uniform(derive(3, np.arange(50_000)))
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 5 / np.sqrt(50_000)


@settings(deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(0, 1000))
def test_below_stays_below(key, bound):
    drawn = below(derive(key, np.arange(50)), bound)
    assert drawn.min() >= 0
    assert drawn.max() < max(bound, 1)


@settings(deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=30), st.integers(0, 8), st.integers(0, 2**32))
def test_choose_draws_distinct_positions(sizes, count, seed):
    for row, size in zip(choose(derive(seed, np.arange(len(sizes))), sizes, count).tolist(), sizes, strict=True):
        drawn = [place for place in row if place >= 0]
        assert len(row) == count
        assert len(drawn) == len(set(drawn)) == min(size, count)
        assert all(place < size for place in drawn)
        assert size > count or row == [*range(size), *[-1] * (count - size)]


def test_choose_draws_every_subset_equally_often():
    drawn = np.sort(choose(derive("subsets", np.arange(60_000)), 6, 3), axis=1)
    subsets, counts = np.unique(drawn, axis=0, return_counts=True)
    assert [tuple(row) for row in subsets.tolist()] == list(combinations(range(6), 3))
    # 19 degrees of freedom: 99.8 % of uniform tables lie between 5.4 and 43.8.
    assert 5.4 < chi_square(counts) < 43.8


@settings(deadline=None)
@given(st.integers(1, 2000), st.integers(0, 2**63))
def test_permute_is_a_bijection(size, seed):
    assert np.array_equal(np.sort(permute(np.arange(size), size, derive(seed))), np.arange(size))


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=10), st.integers(0, 2**32))
def test_permute_takes_sizes_and_keys_by_position(sizes, seed):
    keys = derive(seed, np.arange(len(sizes)))
    flat = np.concatenate([np.arange(size) for size in sizes])
    owner = np.repeat(np.arange(len(sizes)), sizes)
    together = permute(flat, np.array(sizes)[owner], keys[owner])
    apart = [permute(np.arange(size), size, key[None]) for size, key in zip(sizes, keys, strict=True)]
    assert np.array_equal(together, np.concatenate(apart))


# Bounds are the 99.99 % quantiles of chi-square with size - 1 degrees of freedom.
@pytest.mark.parametrize(("size", "bound"), [(3, 18.4), (5, 23.5), (16, 44.3), (100, 157)])
def test_permute_sends_every_position_everywhere(size, bound):
    keys = derive("spread", np.arange(20_000))
    for position in (0, size - 1):
        places = permute(np.full(20_000, position), size, keys)
        assert chi_square(np.bincount(places, minlength=size)) < bound


def test_permute_sends_pairs_of_positions_everywhere():
    keys = derive("pairs", np.arange(20_000))
    pairs = permute(np.zeros(20_000, int), 5, keys) * 5 + permute(np.ones(20_000, int), 5, keys)
    counts = np.bincount(pairs, minlength=25).reshape(5, 5)
    assert np.trace(counts) == 0
    # 19 degrees of freedom over the 20 ordered pairs of distinct places.
    assert chi_square(counts[~np.eye(5, dtype=bool)]) < 43.8
