"""Exchanges of numbers and objects: right for any number of ranks, in messages that grow with its logarithm."""

import math

import pytest
import torch

from bali_ds.distributed import Ranks
from bench.inputs.fake_ranks import run_fake_ranks

SIZES = [1, 2, 3, 4, 5, 7, 8, 12, 16, 33, 64]


def rounds(world_size: int) -> int:
    return math.ceil(math.log2(world_size))


@pytest.mark.parametrize("world_size", SIZES)
def test_the_largest_number_reaches_every_rank(world_size):
    """Whichever rank holds it."""
    for highest in {0, world_size // 2, world_size - 1}:
        found = run_fake_ranks(world_size, lambda ranks, at=highest: ranks.all_reduce_max(int(ranks.rank == at)))
        assert [value for _, value in found] == [1] * world_size
        assert {ranks.messages for ranks, _ in found} == {rounds(world_size)}
        assert max(len(ranks.peers) for ranks, _ in found) <= 2 * rounds(world_size)


@pytest.mark.parametrize("world_size", SIZES)
def test_objects_are_gathered_in_order_broadcast_and_scattered(world_size):
    def work(ranks):
        gathered, broadcast = ranks.gather_object({"rank": ranks.rank}), ranks.broadcast_object(("of", ranks.rank))
        return gathered, broadcast, ranks.scatter_object(gathered)

    found = run_fake_ranks(world_size, work)
    everyone = [{"rank": rank} for rank in range(world_size)]
    assert [results for _, results in found] == [
        (everyone if rank == 0 else None, ("of", 0), everyone[rank]) for rank in range(world_size)
    ]
    assert max(ranks.messages for ranks, _ in found) <= 1 + 2 * rounds(world_size)
    assert max(len(ranks.peers) for ranks, _ in found) <= 2 * rounds(world_size)


@pytest.mark.parametrize("counts", [[3, 3, 3], [2, 0, 3], [0, 0, 1]])
def test_rows_of_uneven_ranks_are_selected_from_the_padded_gather(counts, monkeypatch):
    rows = [torch.arange(count * 2).view(count, 2) + 10 * rank for rank, count in enumerate(counts)]

    def gather(everyone, padded, group):
        del group
        assert padded.shape[0] == max(counts)
        blank = torch.full_like(padded, -1)
        everyone.copy_(torch.cat([torch.cat([own, blank])[: max(counts)] for own in rows]))

    monkeypatch.setattr("torch.distributed.all_gather_into_tensor", gather)
    assert torch.equal(Ranks(1, len(counts)).all_gather_rows(rows[1], counts), torch.cat(rows))
