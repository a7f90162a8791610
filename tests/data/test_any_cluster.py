"""The promise of the stream: whatever the ranks, workers and interruptions, the same global batches."""

from itertools import count, islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bali_ds.data.batch_sampler import BatchSampler, RankSlice
from bali_ds.data.loader import Loader
from bali_ds.data.sampler import LANES, Position
from bali_ds.data.settings import StreamSettings

BATCH = 12
STEPS = 19  # two epochs of eight steps, and three steps of the next

# The length of each life of a run, and the ranks and workers that it had.
LIVES = st.lists(
    st.tuples(st.integers(1, 9), st.sampled_from((1, 2, 3, 4, 6)), st.sampled_from((0, 1, 2, 5))),
    min_size=1,
    max_size=6,
)


def life(data, settings_, start, steps, world_size, workers):
    """The global batches of some steps, made by ranks and workers, and the position in the data after them."""
    batches = [[None] * BATCH for _ in range(steps)]
    ends = set()
    for rank in range(world_size):
        made = {}
        for worker in range(max(workers, 1)):
            source = BatchSampler(*data, settings_, RankSlice(BATCH, 1, rank, world_size), start)
            made |= {
                number: source[number] for number in islice(count(worker, max(workers, 1)), steps) if number < steps
            }
        for number, batch in enumerate(batches):
            batch[rank::world_size] = made[number].micro_batches[0].sample_rows.tolist()
        ends.add(made[steps - 1].position_after)
    assert len(ends) == 1
    return batches, ends.pop()


@pytest.mark.parametrize("window", [1, 1024])
@settings(max_examples=15, deadline=None)
@given(lives=LIVES, seed=st.integers(0, 5))
def test_lives_of_any_shape_make_one_run(data, window, lives, seed):
    chosen = StreamSettings(seed=seed, window=window)
    assert (window * LANES < 100) == (window == 1)
    expected, _ = life(data, chosen, Position(), STEPS, 1, 0)
    found, position = [], Position()
    for steps, world_size, workers in lives:
        batches, position = life(data, chosen, position, steps, world_size, workers)
        found += batches
    assert found[:STEPS] == expected[: len(found)]
    for epoch in (found[:8], found[8:16]):
        rows = [row for batch in epoch for row in batch]
        assert len(rows) == len(set(rows)), "none twice"
        assert len(epoch) < 8 or len(set(range(100)) - set(rows)) == 4, "none lost but the tail"


@pytest.mark.parametrize(("world_size", "workers"), [(1, 5), (6, 1), (4, 2)])
def test_real_worker_processes_make_the_same_run(data, world_size, workers):
    chosen = StreamSettings(seed=4)
    start = Position(0, 36)
    expected, _ = life(data, chosen, start, 7, 1, 0)
    for rank in (0, world_size - 1):
        with Loader(
            *data, chosen, global_batch=BATCH, rank=rank, world_size=world_size, workers=workers, start=start
        ) as loader:
            found = [step.micro_batches[0].sample_rows.tolist() for step in islice(loader, 7)]
        assert found == [batch[rank::world_size] for batch in expected]
