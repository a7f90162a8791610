"""Hand-computed bytes for a model of 1000 parameters on 4 ranks."""

from dataclasses import replace

import pytest

from bali_ds.planning.activations import PassMemory
from bali_ds.planning.memory import MemoryInputs, bytes_sent, rank_memory

RUN = MemoryInputs(
    parameters=1000,
    trained=1000,
    largest=400,
    weight_bytes=2,
    ranks=4,
    activations=PassMemory(with_gradients=10**6, without_gradients=9 * 10**5),
    on_gpu=True,
    settings={"zero_optimization": {"stage": 1, "reduce_bucket_size": 500, "overlap_comm": True}},
)


def test_states_follow_the_zero_paper():
    """2 + 2 + 12 bytes a parameter, of which stages 1, 2 and 3 share out 12, 14 and 16 (ZeRO, figure 1)."""
    rows = [rank_memory(RUN, stage) for stage in range(4)]
    states = [row.weights + row.gradients + row.master + row.optimizer for row in rows]
    assert states == [16_000, 4000 + 12_000 // 4, 2000 + 14_000 // 4, 16_000 // 4]


def test_peaks_are_sums_that_exist_at_one_time():
    unsharded, first, _, third = (rank_memory(RUN, stage) for stage in range(4))
    assert unsharded.peak == 2000 + 4000 + 8000 + 10**6
    assert first.peak == 2000 + 3000 + 10**6 + 2 * 500 * 2
    assert third.peak == 4000 + 500 * 2 + 9 * 10**5 + 2000


def test_without_buckets_gradients_are_copied_a_bucket_at_a_time():
    zero = {"reduce_bucket_size": 500, "contiguous_gradients": False}
    alone = replace(RUN, ranks=1, settings={"zero_optimization": zero, "communication_data_type": "fp32"})
    first, second = (rank_memory(alone, stage) for stage in (1, 2))
    assert first.peak == 2000 + 12_000 + 10**6
    assert second.peak == first.peak + 500 * (2 + 4)
    quiet = replace(alone, activations=PassMemory(0, 0), parameters=400, trained=400)
    # gradients 2 and copies 2 + 4; the step's fp32 gradients, 4, and averaged ones, 2, are as many
    assert rank_memory(quiet, 1).peak == 400 * (2 + 12) + 400 * (2 + 2 + 4)


def test_the_optimizer_step_decides_where_activations_are_few():
    quiet = replace(RUN, activations=PassMemory(0, 0), on_gpu=False, weight_bytes=4)
    # between steps 4 + 8; during it gradients 4 and AdamW's two temporaries of the largest parameter
    assert rank_memory(quiet, 0).peak == 12_000 + max(4000 + 4000, 4000 + 2 * 4 * 400)


def test_offloading_moves_states_to_the_host():
    offloading = {"device": "cpu"}
    zero = {"stage": 3, "offload_optimizer": offloading, "offload_param": offloading}
    offloaded = rank_memory(replace(RUN, settings={"zero_optimization": zero}), 3)
    assert offloaded.offloaded == 500 + 3000 + 500
    assert offloaded.peak < 10**10


def test_cached_names_lie_whole_on_every_rank_at_every_stage():
    for stage in range(4):
        without, cached = (rank_memory(replace(RUN, names=names), stage) for names in (0, 7000))
        assert (without.names, cached.names) == (0, 7000)
        assert cached.peak == without.peak + 7000


@pytest.mark.parametrize(("stage", "times"), [(0, 2 * 2), (1, 2 * 2 + 2), (2, 2 * 2 + 2), (3, 2 + 2)])
def test_traffic_of_a_ring(stage, times):
    assert bytes_sent(RUN, stage) == times * 1000 * 3 // 4


def test_gradients_may_travel_smaller():
    whole = replace(RUN, weight_bytes=4)
    smaller = replace(whole, settings={"communication_data_type": "bf16"})
    assert bytes_sent(whole, 1) - bytes_sent(smaller, 1) == 2 * 2 * 1000 * 3 // 4


def test_one_rank_sends_nothing():
    assert [bytes_sent(replace(RUN, ranks=1), stage) for stage in range(4)] == [0] * 4


def test_weights_that_are_not_trained_have_no_gradients_and_no_optimizer():
    frozen = replace(RUN, trained=100)
    rows = [rank_memory(frozen, stage) for stage in range(4)]
    states = [row.weights + row.gradients + row.master + row.optimizer for row in rows]
    assert states == [2000 + 14 * 100, 2000 + 200 + 12 * 25, 2000 + 14 * 25, 500 + 14 * 25]
    assert bytes_sent(frozen, 2) == (2 * 2 + 2) * 100 * 3 // 4
    assert bytes_sent(replace(frozen, settings={}), 3) == (2 * 100 + 2 * 1000) * 3 // 4


def test_stage_3_gathers_weights_whenever_they_are_read_and_reduces_gradients_once():
    released = replace(RUN, settings={"zero_optimization": {"stage": 3, "stage3_max_live_parameters": 0}})
    assert bytes_sent(released, 3) == (2 + 2 * 2) * 1000 * 3 // 4
    assert bytes_sent(released, 3, 12) == (2 + 12 * 2) * 1000 * 3 // 4
    assert bytes_sent(released, 2, 12) == bytes_sent(released, 2)
