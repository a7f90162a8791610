import random

from bali_ds.training.stability import SpikeDetector


def test_a_falling_loss_with_noise_has_no_spike():
    random_source, detector = random.Random(0), SpikeDetector(8)
    assert not any(detector.is_spike(10 * 0.99**step + random_source.gauss(0, 0.1)) for step in range(1000))


def test_a_spike_is_not_added_to_the_history():
    random_source, detector = random.Random(0), SpikeDetector(8)
    for _ in range(50):
        detector.is_spike(random_source.gauss(3, 0.1))
    assert detector.is_spike(5)
    assert detector.is_spike(float("inf"))
    assert not detector.is_spike(3.2)


def test_a_constant_loss_may_change_a_little():
    detector = SpikeDetector(8)
    for _ in range(50):
        detector.is_spike(3.0)
    assert not detector.is_spike(3.1)


def test_there_are_no_spikes_without_a_history_or_when_the_detector_is_off():
    assert not SpikeDetector(8).is_spike(1e9)
    off = SpikeDetector(0)
    assert not any(off.is_spike(loss) for loss in [1.0] * 50 + [1e9])
