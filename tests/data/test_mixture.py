"""Mixtures of shard sets and sampling weights: pure functions of fingerprints, proportions, seed and epoch."""

import copy
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bali_ds.data.evaluation_batches import evaluation_batches
from bali_ds.data.frequency_weights import passage_weights
from bali_ds.data.loader import Loader
from bali_ds.data.mixture import Mixture, open_mixture
from bali_ds.data.sampler import Position, SampleOrder, epoch_order
from bali_ds.data.settings import StreamSettings
from bali_ds.errors import InputError
from bali_ds.shards.shard_set import ShardSet
from tests.data.conftest import write_graph, write_shards
from tests.data.test_any_cluster import BATCH, LIVES, life
from tests.data.test_loader import rows, steps

PROPORTIONS = (3, 1, 2)
SIZES = (100, 40, 250)
STEPS = 40  # an epoch of the mixture has 32


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BALI_DS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def sets(data, tmp_path_factory):
    folder, graph = tmp_path_factory.mktemp("mixture"), data[1]
    others = [write_shards(folder / str(size), graph, train=size, validation=9, seed=size) for size in SIZES[1:]]
    return [data[0], *others]


@pytest.fixture(scope="module")
def mixture(sets):
    return Mixture(sets, PROPORTIONS)


@pytest.mark.parametrize("seed", [0, 9])
def test_sets_have_their_exact_shares_and_keep_their_own_order(mixture, seed):
    order = SampleOrder(mixture, StreamSettings(seed=seed))
    # a round is the smallest multiple of the proportions with 256 positions or more
    length, per_round = 43 * sum(PROPORTIONS), [43 * share for share in PROPORTIONS]
    found_indices = order.indices(np.arange(5 * length))
    numbers = mixture.set_numbers(found_indices.sample_rows)
    for begin in range(0, 5 * length, length):
        assert np.bincount(numbers[begin : begin + length]).tolist() == per_round
    for number, shards in enumerate(mixture.sets):
        held = numbers == number
        size = SIZES[number]
        orders = [
            epoch_order(shards, "train", seed, epoch, 1024).rows(np.arange(size)) for epoch in range(600 // size + 1)
        ]
        expected = np.concatenate(orders).tolist()
        found = (found_indices.sample_rows[held] - mixture.starts[number]).tolist()[:600]
        # a round has an order of its own, so what a set has within it may come in another
        share = per_round[number]
        for begin in range(0, min(len(found), 600) - share, share):
            assert sorted(found[begin : begin + share]) == sorted(expected[begin : begin + share])
        assert found_indices.repeats[held][:size].tolist().count(0) >= min(size, held.sum()) - share


def test_batches_hold_nearly_the_proportions(mixture):
    order = SampleOrder(mixture, StreamSettings(seed=1))
    numbers = mixture.set_numbers(order.indices(np.arange(6400)).sample_rows).reshape(-1, 64)
    shares = np.stack([np.bincount(batch, minlength=3) for batch in numbers]) / 64
    assert np.abs(shares.mean(axis=0) - np.array(PROPORTIONS) / 6).max() < 0.005
    assert np.abs(shares - np.array(PROPORTIONS) / 6).max() < 0.25
    for rank in range(2):
        mine = np.bincount(numbers[:, rank::2].ravel(), minlength=3) / 3200
        assert np.abs(mine - np.array(PROPORTIONS) / 6).max() < 0.03, "no rank is left with one of the sets"


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@settings(max_examples=8, deadline=None)
@given(lives=LIVES, seed=st.integers(0, 5))
def test_lives_of_any_shape_make_one_run(data, mixture, temperature, lives, seed):
    chosen = StreamSettings(seed=seed, temperature=temperature)
    mixed = (mixture, data[1])
    expected, _ = life(mixed, chosen, Position(), STEPS, 1, 0)
    found, position = [], Position()
    for count, world_size, workers in lives:
        batches, position = life(mixed, chosen, position, count, world_size, workers)
        found += batches
    assert found[:STEPS] == expected[: len(found)]


@pytest.mark.parametrize(("world_size", "workers"), [(1, 5), (6, 1), (3, 2)])
def test_real_worker_processes_make_the_same_run(data, mixture, world_size, workers):
    chosen = StreamSettings(seed=4, temperature=0.5)
    start = Position(0, 36)
    expected, _ = life((mixture, data[1]), chosen, start, 5, 1, 0)
    for rank in (0, world_size - 1):
        found = steps(
            (mixture, data[1]), 5, settings=chosen, global_batch=BATCH, rank=rank, world_size=world_size,
            workers=workers, start=start,
        )  # fmt: skip
        assert [rows(step) for step in found] == [batch[rank::world_size] for batch in expected]


def test_a_set_alone_is_in_its_own_order(sets):
    order = SampleOrder(Mixture(sets[:1], [7]), StreamSettings(seed=2))
    expected = [epoch_order(sets[0], "train", 2, epoch, 1024).rows(np.arange(100)) for epoch in range(3)]
    found_indices = order.indices(np.arange(300))
    assert found_indices.sample_rows.tolist() == np.concatenate(expected).tolist()
    assert found_indices.repeats.tolist() == np.repeat(np.arange(3), 100).tolist()


def plain_weights(shards, temperature):
    passages = [set(shards.arrays(row)[1][:, 2].tolist()) for row in shards.split("train")]
    frequency = Counter(concept for concepts in passages for concept in concepts)
    weights = [
        np.mean([frequency[concept] ** (temperature - 1) for concept in concepts]) if concepts else None
        for concepts in passages
    ]
    mean = np.mean([weight for weight in weights if weight is not None])
    return np.array([mean if weight is None else weight for weight in weights])


@pytest.mark.parametrize("temperature", [0.0, 0.4])
def test_passages_come_as_often_as_their_weights_say(data, temperature):
    mixture = Mixture.of(data[0])
    weights = plain_weights(data[0], temperature)
    found = passage_weights(mixture, mixture.rows_of(0, "train"), temperature)
    assert found == pytest.approx(weights)
    order = SampleOrder(mixture, StreamSettings(seed=3, temperature=temperature))
    expected = weights / weights.mean()
    counts = np.zeros(100)
    for epoch in range(200):
        found_indices = order.indices(np.arange(100 * epoch, 100 * epoch + 100))
        epoch_counts = np.bincount(found_indices.sample_rows, minlength=100)
        assert (np.abs(epoch_counts - expected) < 1 + 1e-9).all(), "as near to its weight as whole numbers allow"
        repeats = Counter(zip(found_indices.sample_rows.tolist(), found_indices.repeats.tolist(), strict=True))
        assert max(repeats.values()) == 1, "two uses of one passage differ"
        assert set((found_indices.repeats % 2**32).tolist()) == {epoch}
        counts += epoch_counts
    assert np.abs(counts / 200 - expected).max() < 0.15


def test_shards_of_another_directory_have_weights_of_their_own(data, tmp_path, monkeypatch):
    """Even if their index claims the same fingerprint."""
    monkeypatch.setenv("BALI_DS_CACHE", str(tmp_path / "cache"))
    SampleOrder(Mixture.of(data[0]), StreamSettings(temperature=0.7))
    copy = ShardSet.open(shutil.copytree(data[0].path, tmp_path / "copy"))
    assert copy.fingerprint == data[0].fingerprint
    SampleOrder(Mixture.of(copy), StreamSettings(temperature=0.7))
    (one, other) = sorted((tmp_path / "cache/weights").glob("*.npy"))
    assert not one.name.startswith(copy.fingerprint[:8])
    for file in (one, other):
        np.save(file, np.load(file)[::-1])
    with pytest.raises(InputError, match=r"\.npy: is damaged; remove it"):
        SampleOrder(Mixture.of(copy), StreamSettings(temperature=0.7))


def test_weights_are_computed_once_for_all(data, monkeypatch):
    mixture = Mixture.of(data[0])
    first = SampleOrder(mixture, StreamSettings(temperature=0.7)).indices(np.arange(100))
    monkeypatch.setattr("bali_ds.data.frequency_weights.passage_weights", None)
    again = SampleOrder(mixture, StreamSettings(temperature=0.7)).indices(np.arange(100))
    assert again.sample_rows.tolist() == first.sample_rows.tolist()


def test_validation_takes_of_every_set_by_its_size(data, mixture):
    batches = list(evaluation_batches(mixture, data[1], StreamSettings(), batch_size=4, limit=9))
    found = mixture.set_numbers(np.concatenate([batch.sample_rows.numpy() for batch in batches]))
    assert np.bincount(found).tolist() == [5, 3, 1]
    assert len(list(evaluation_batches(mixture, data[1], StreamSettings(), batch_size=1))) == 17 + 9 + 9


def test_a_sample_of_a_mixture_is_found_by_its_row(mixture):
    for row in (0, 116, 117, 170, 400):
        number = int(mixture.set_numbers(np.array([row]))[0])
        each, own = mixture.sets[number], row - int(mixture.starts[number])
        assert mixture.key(row) == each.key(own)
        assert all(np.array_equal(a, b) for a, b in zip(mixture.arrays(row), each.arrays(own), strict=True))
        shard = int(mixture.shard_numbers(np.array([row]))[0])
        assert mixture.tar(shard) == each.path / each.shards[int(each.shard_numbers(own)[0])].name


def test_sets_that_do_not_go_together_are_refused(data, sets, tmp_path):
    other = write_graph(tmp_path / "other", seed=9)
    strange = write_shards(tmp_path / "strange", other)
    with pytest.raises(InputError, match="was built with the graph"):
        open_mixture({str(sets[0].path): 1, str(strange.path): 1})
    weighted = copy.copy(sets[1])
    weighted.index = {**weighted.index, "neighbours": {"largest_degree": 5}}
    with pytest.raises(InputError, match=r"neighbors of the settings \{'largest_degree': 5\}, but .* with default"):
        Mixture([sets[0], weighted], [1, 1])
    with pytest.raises(InputError, match="whole numbers"):
        Mixture(sets[:2], [0, 1])
    empty = write_shards(tmp_path / "empty", data[1], train=0, validation=4)
    with pytest.raises(InputError, match="has no train samples"):
        Loader(Mixture([sets[0], empty], [1, 1]), data[1], StreamSettings(), global_batch=4)


def test_fingerprints_tell_mixtures_apart(sets):
    mixtures = [Mixture(sets[:2], [1, 2]), Mixture(sets[:2], [2, 1]), Mixture(sets[1::-1], [2, 1]), Mixture(sets[:1])]
    assert len({mixture.fingerprint for mixture in mixtures}) == 4
    assert mixtures[3].fingerprint == sets[0].fingerprint


def test_temperature_is_a_share():
    with pytest.raises(InputError, match="temperature"):
        replace(StreamSettings(), temperature=1.5)
