"""The schedules of the loss: each pair of ranks once, for any units, and by all of them the loss of the whole batch."""

from collections import Counter

import pytest
import torch

from bali_ds.losses.contrastive import contrastive_loss
from bali_ds.losses.contrastive.block_schedule import BlockSchedule
from bench.inputs.fake_ranks import run_fake_ranks
from tests.losses import dense_contrastive as dense
from tests.losses.rounding import rounding
from tests.losses.test_contrastive import assert_close, expected

SCALE, BIAS = 18.0, -2.0


@pytest.mark.parametrize(
    ("ranks", "unit"), [(1, 1), (2, 1), (2, 2), (5, 5), (6, 2), (6, 3), (8, 2), (8, 4), (7, 1), (16, 8)]
)
def test_every_pair_of_ranks_is_processed_once(ranks, unit):
    joint, both_ways = Counter(), Counter()
    for rank in range(ranks):
        schedule = BlockSchedule(rank, ranks, unit, joint=True)
        for hop in range(schedule.last_hop + 1):
            for step in schedule.steps(hop):
                joint[min(rank, step.owner), max(rank, step.owner)] += 1 if step.half else 2
        schedule = BlockSchedule(rank, ranks, unit, joint=False)
        both_ways.update((rank, step.owner) for hop in range(schedule.last_hop + 1) for step in schedule.steps(hop))
    pairs = [(low, high) for high in range(ranks) for low in range(high)]
    assert joint == dict.fromkeys(pairs, 2)
    assert both_ways == {pair: 1 for low, high in pairs for pair in ((low, high), (high, low))}


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize(("ranks", "unit"), [(8, 4), (6, 3), (6, 2), (5, 5)])
def test_ranks_know_who_processes_their_columns(joint, ranks, unit):
    schedules = [BlockSchedule(rank, ranks, unit, joint) for rank in range(ranks)]
    for mine in schedules:
        for hop in range(mine.last_hop + 1):
            owner = mine.column_owner(hop)
            unit_of_mine = schedules[mine.rank // unit * unit :][:unit]
            assert mine.processed_by(hop) == [
                any(step.owner == owner for step in each.steps(hop)) for each in unit_of_mine
            ]


@pytest.mark.parametrize(("ranks", "unit"), [(6, 2), (6, 3), (9, 3), (8, 2), (8, 4)])
@pytest.mark.parametrize("kind", ["ntxent", "clip", "multi_similarity", "sigmoid"])
def test_nodes_of_any_size_equal_one_process(kind, ranks, unit):
    """With fake ranks, which exchange tensors within one process."""
    data = dense.views(ranks + unit, 5 * ranks, 4 * ranks, 12, concepts=25)
    sizes = [3 + 4 * (rank % 2) for rank in range(ranks - 1)], [8 - 8 * (rank % 2) for rank in range(ranks - 1)]
    splits = [[*size, len(views) - sum(size)] for size, views in zip(sizes, data[:2], strict=True)]

    def work(own):
        queries, keys, *ids = (each.split(splits[number % 2])[own.rank] for number, each in enumerate(data))
        leaves = [queries.clone().requires_grad_(), keys.clone().requires_grad_()]
        leaves += [torch.tensor([value], requires_grad=True) for value in (SCALE, BIAS)]
        loss = contrastive_loss(
            *leaves[:3], query_concept_ids=ids[0], key_concept_ids=ids[1], kind=kind, logit_bias=leaves[3], group=own,
            communication="hierarchical", tile_size=5,
        )  # fmt: skip
        return loss.detach(), torch.autograd.grad(loss, leaves, allow_unused=True)

    found = [result for _, result in run_fake_ranks(ranks, work, node_size=unit)]
    assert not [error for error in found if isinstance(error, Exception)]
    losses, gradients = zip(*found, strict=True)
    assert len({float(loss) for loss in losses}) == 1
    whole = [[each.double() / ranks for each in column] for column in zip(*gradients, strict=True)]
    got = [losses[0].double(), torch.cat(whole[0]), torch.cat(whole[1]), sum(whole[2]), sum(whole[3])]
    assert_close(got, expected(kind, data, SCALE, BIAS), rounding(SCALE))
