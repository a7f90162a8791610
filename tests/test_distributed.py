"""Exchanges of numbers and objects: right for any number of ranks, in messages that grow with its logarithm."""

import math
from dataclasses import replace

import pytest
import torch

from bali_ds.distributed import Ranks, ranks_per_node, reduction_groups
from bench.inputs.fake_ranks import run_fake_ranks

SIZES = [1, 2, 3, 4, 5, 7, 8, 12, 16, 33, 64]


def rounds(world_size: int) -> int:
    return math.ceil(math.log2(world_size))


def is_prime(number):
    return all(number % divisor for divisor in range(2, number))


@pytest.mark.parametrize(("world_size", "messages"), [(8, 14), (64, 28), (512, 42), (1024, 44), (1016, 266)])
def test_messages_of_a_reduction_grow_with_the_logarithm(world_size, messages):
    """1,016 ranks are 127 hosts of 8: a prime number of hosts is one ring."""
    groups = [reduction_groups(rank, world_size) for rank in range(world_size)]
    assert {sum(2 * (len(group) - 1) for group in own) for own in groups} == {messages}
    for rank, own in enumerate(groups):
        for stage, group in enumerate(own):
            assert rank in group
            assert all(groups[member][stage] == group for member in group)


@pytest.mark.parametrize("world_size", SIZES)
def test_the_largest_number_reaches_every_rank(world_size):
    """Whichever rank holds it."""
    for highest in {0, world_size // 2, world_size - 1}:
        found = run_fake_ranks(world_size, lambda ranks, at=highest: ranks.all_reduce_max(int(ranks.rank == at)))
        assert [value for _, value in found] == [1] * world_size
    primes = [number for number in range(2, world_size + 1) if world_size % number == 0 and is_prime(number)]
    largest_prime = max(primes, default=1)
    assert max(ranks.messages for ranks, _ in found) <= 5 * rounds(world_size) + 2 * largest_prime
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

    def gather(everyone, padded, **_options):
        assert padded.shape[0] == max(counts)
        blank = torch.full_like(padded, -1)
        everyone.copy_(torch.cat([torch.cat([own, blank])[: max(counts)] for own in rows]))

    monkeypatch.setattr("torch.distributed.all_gather_into_tensor", gather)
    assert torch.equal(Ranks(1, len(counts)).all_gather_rows(rows[1], counts), torch.cat(rows))


@pytest.mark.parametrize(
    ("nodes", "size"),
    [
        ("a", 1),
        ("aaaa", 4),
        ("aabb", 2),
        ("abcd", 1),
        ("aabbb", None),  # nodes of two and three ranks
        ("aaab", None),  # four ranks on two nodes, but not two on each
        ("abab", None),  # not numbered node by node
        ("abba", None),
    ],
)
def test_ranks_per_node_are_known_where_nodes_are_alike_and_numbered_one_after_the_other(nodes, size, monkeypatch):
    assert ranks_per_node(list(nodes)) == size
    for name in ("new_group", "get_global_rank"):
        monkeypatch.setattr(f"torch.distributed.{name}", lambda *_, **__: None)

    def node_of(ranks):
        node = replace(ranks, group="a group").with_node(nodes[ranks.rank], torch.device("cpu")).node
        return node and (node.rank, node.world_size)

    found = run_fake_ranks(len(nodes), node_of)
    assert [node for _, node in found] == [size and (rank % size, size) for rank in range(len(nodes))]
