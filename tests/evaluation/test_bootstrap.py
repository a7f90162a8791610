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
