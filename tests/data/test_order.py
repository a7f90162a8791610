import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bali_ds.data.sampler import LANES, EpochOrder, Position, Schedule, rank_offsets
from bali_ds.errors import InputError

SIZES = st.lists(st.integers(0, 300), min_size=1, max_size=12).filter(any)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(0, 2**40), st.integers(0, 5), st.integers(1, 40))
def test_an_epoch_takes_every_sample_once(sizes, seed, epoch, window):
    order = EpochOrder(sizes, "f", seed, epoch, window=window)
    rows = order.rows(np.arange(order.size))
    assert np.array_equal(np.sort(rows), np.arange(sum(sizes)))


@settings(max_examples=30, deadline=None)
@given(SIZES, st.integers(1, 9), st.data())
def test_any_position_is_computed_alone(sizes, window, data):
    order = EpochOrder(sizes, "f", 3, 1, window=window)
    rows = order.rows(np.arange(order.size))
    position = data.draw(st.integers(0, order.size - 1))
    assert EpochOrder(sizes, "f", 3, 1, window=window).rows(position).tolist() == [rows[position]]


@pytest.mark.parametrize("window", [2, 10_000])
def test_order_follows_fingerprint_seed_and_epoch(window):
    def order(fingerprint, seed, epoch):
        return EpochOrder([500] * 7, fingerprint, seed, epoch, window=window).rows(np.arange(3500)).tolist()

    orders = [order("f", 0, 0), order("g", 0, 0), order("f", 1, 0), order("f", 0, 1), order("f", 1, 1)]
    assert len({tuple(rows) for rows in orders}) == len(orders)
    assert order("f", 1, 1) == orders[-1]


def test_a_lane_stays_in_its_range_and_its_window():
    order = EpochOrder([1000] * 12, "f", 0, 0, window=25)
    rows = order.rows(np.arange(12_000))
    assert LANES * 25 < 12_000
    for lane in (0, 1, LANES - 1):
        taken = rows[lane::LANES]
        assert taken.size == 12_000 // LANES
        shards = taken // 1000
        assert np.count_nonzero(np.diff(shards)) <= 25, "a lane passes from shard to shard, not back and forth"
        for begin in range(0, taken.size, 25):
            window = np.sort(taken[begin : begin + 25])
            jumps = np.diff(window)
            assert np.count_nonzero(jumps != 1) <= 1, "a window is a contiguous piece of one or two shards"


def test_a_small_set_is_shuffled_as_a_whole():
    counts = np.zeros((10, 10))
    for seed in range(300):
        rows = EpochOrder([60, 40], "f", seed, 0).rows(np.arange(100))
        np.add.at(counts, (np.arange(100) // 10, rows // 10), 1)
    statistic = ((counts - 300) ** 2 / 300).sum()
    # 81 degrees of freedom: 99.9 % of uniform tables lie between 45 and 126.
    assert 45 < statistic < 126


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 50), st.integers(0, 3), st.integers(0, 200))
def test_schedule_counts_whole_steps_of_each_epoch(size, batch, epoch, seen):
    if batch > size or seen > size:
        with pytest.raises(InputError):
            Schedule(size, batch, Position(epoch, seen))
        return
    schedule = Schedule(size, batch, Position(epoch, seen))
    expected, position = [], Position(epoch, seen)
    while len(expected) < 30:
        if position.samples_seen + batch > size:
            position = Position(position.epoch + 1, 0)
        expected.append(position)
        position = Position(position.epoch, position.samples_seen + batch)
    assert [schedule.begin(step) for step in range(30)] == expected
    assert schedule.steps_per_epoch == size // batch


def test_a_batch_that_cannot_be_split_is_refused():
    assert rank_offsets(12, 2, 1, 3).tolist() == [1, 4, 7, 10]
    for batch, micro_batches, rank, world in [(12, 5, 0, 1), (12, 1, 0, 5), (12, 1, 3, 3), (12, 0, 0, 1)]:
        with pytest.raises(InputError):
            rank_offsets(batch, micro_batches, rank, world)
