"""Windows of a long text around its mentions: every mention is read, once, with as much context as there is."""

import numpy as np
import pytest

from bali_ds.inference.mention_windows import mention_windows


@pytest.mark.parametrize("seed", range(20))
def test_every_mention_has_one_window_with_context_on_both_sides(seed):
    draw = np.random.default_rng(seed)
    length, room = int(draw.integers(1, 300)), int(draw.integers(8, 60))
    firsts = draw.integers(0, length, 12)
    spans = [(int(first), int(min(length, first + draw.integers(1, 4)))) for first in firsts]
    windows = mention_windows(spans, length, room)
    assert sorted(mention for window in windows for mention in window.mentions) == list(range(12))
    for window in windows:
        assert 0 <= window.first < window.last <= length
        assert window.last - window.first == min(room, length)
        for mention in window.mentions:
            first, last = spans[mention]
            assert first - window.first >= min(first, room // 4)
            assert window.last - last >= min(length - last, room // 4)


def test_mentions_of_a_short_text_share_a_window_and_distant_ones_do_not():
    assert mention_windows([(7, 8), (0, 2)], 10, 10) == [(0, 10, [1, 0])]
    assert len(mention_windows([(0, 1), (500, 501)], 1000, 100)) == 2
    assert len(mention_windows([(number, number + 1) for number in range(1000)], 1000, 100)) <= 20


def test_a_mention_longer_than_the_window_is_read_from_its_start():
    assert mention_windows([(40, 90)], 200, 20) == [(40, 60, [0])]
