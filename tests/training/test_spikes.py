import random

from bali_ds.training.stability import SpikeDetector
from bali_ds.training.timers import slow_hosts


def test_a_falling_loss_with_noise_has_no_spike():
    draw, detector = random.Random(0), SpikeDetector(8)
    assert not any(detector.jumped(10 * 0.99**step + draw.gauss(0, 0.1)) for step in range(1000))


def test_a_jump_is_one_and_does_not_count_for_those_to_come():
    draw, detector = random.Random(0), SpikeDetector(8)
    for _ in range(50):
        detector.jumped(draw.gauss(3, 0.1))
    assert detector.jumped(5)
    assert detector.jumped(float("inf"))
    assert not detector.jumped(3.2)


def test_a_constant_loss_may_waver():
    detector = SpikeDetector(8)
    for _ in range(50):
        detector.jumped(3.0)
    assert not detector.jumped(3.1)


def test_nothing_is_a_spike_before_there_is_a_history_or_when_switched_off():
    assert not SpikeDetector(8).jumped(1e9)
    off = SpikeDetector(0)
    assert not any(off.jumped(loss) for loss in [1.0] * 50 + [1e9])


def test_slow_hosts_are_named_by_their_slowest_rank():
    even = [(f"node{number // 2}", 1.0 + number / 100) for number in range(8)]
    assert slow_hosts(even) is None
    line = slow_hosts([*even, ("node9", 1.0), ("node9", 2.0)])
    assert line is not None
    assert "node9 2.000 s" in line
    assert "node1" not in line
