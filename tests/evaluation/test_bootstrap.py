import numpy as np
import pytest

from bali_ds.evaluation.bootstrap import intervals, paired_difference


def test_interval_of_a_proportion_is_near_the_normal_one():
    hits = (np.arange(2000) % 4 == 0).astype(float)
    found = intervals({"hits": hits})["hits"]
    half = 1.96 * np.sqrt(0.25 * 0.75 / 2000)
    assert found["value"] == 0.25
    assert found["low"] == pytest.approx(0.25 - half, abs=0.003)
    assert found["high"] == pytest.approx(0.25 + half, abs=0.003)


def test_the_seed_decides():
    values = {"x": np.random.default_rng(0).random(50)}
    assert intervals(values, 1) == intervals(values, 1)
    assert intervals(values, 1) != intervals(values, 2)


def test_pairing_sees_what_separate_intervals_hide():
    draw = np.random.default_rng(0)
    before = (draw.random(4000) < 0.5).astype(float)
    after = np.where(draw.random(4000) < 0.02, 1.0, before)
    found = paired_difference(before, after)
    assert found["low"] > 0
    assert found["p"] < 0.01
    apart = intervals({"before": before, "after": after})
    assert apart["before"]["high"] > apart["after"]["low"]
    assert paired_difference(after, before)["value"] == -found["value"]


def test_no_difference_has_no_significance():
    draw = np.random.default_rng(1)
    assert paired_difference(draw.random(500), draw.random(500))["p"] > 0.05


def test_documents_are_resampled_with_all_of_their_examples():
    draw = np.random.default_rng(2)
    of_document = draw.random(50)
    documents = np.repeat(np.arange(50), 20)
    values = of_document[documents]
    apart, together = (intervals({"x": values}, documents=each)["x"] for each in (None, documents))
    width = {name: each["high"] - each["low"] for name, each in (("apart", apart), ("together", together))}
    assert together["value"] == apart["value"] == pytest.approx(values.mean())
    assert width["together"] == pytest.approx(2 * 1.96 * of_document.std() / np.sqrt(50), rel=0.15)
    assert width["apart"] < 0.3 * width["together"]
    alone = intervals({"x": of_document}, documents=np.arange(50))["x"]
    assert alone["high"] - alone["low"] == pytest.approx(width["together"], rel=0.1)
    difference = paired_difference(values, values + 0.1, documents=documents)
    assert (difference["low"], difference["high"]) == (pytest.approx(0.1), pytest.approx(0.1))


def test_documents_of_unequal_size_count_by_their_examples():
    documents = np.array([0, 0, 0, 7])
    found = intervals({"x": np.array([1.0, 1.0, 1.0, 0.0])}, documents=documents)["x"]
    assert (found["value"], found["low"], found["high"]) == (0.75, 0.0, 1.0)
