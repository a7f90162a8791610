"""The cost model of the schedules: its bytes are those that they send and hold, and its choice fits into memory."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from bali_ds.losses.contrastive.communication import Exchange
from bali_ds.losses.contrastive.communication_cost import (
    CPU,
    H100,
    HardwareRates,
    LossSizes,
    choose_schedule,
    schedule_cost,
    units,
)
from bali_ds.losses.contrastive.sorted_views import ViewLayout
from bench.inputs.fake_ranks import CountingRanks
from bench.peers.memory import PeakBytes

FAST = float("inf")
INSTANT = HardwareRates(within_node=FAST, between_nodes=FAST, message=0.0, products=FAST, memory=0, call=0.0)
VIEWS, WIDTH = 40, 512


def sizes_of(ranks, node, joint, views=VIEWS):
    return LossSizes(ranks, node, rows=views, columns=views, width=WIDTH, itemsize=2, joint=joint, passes=2)


def exchange_of(ranks, unit, joint):
    """Return the exchange of the first rank, whose features exist in shape alone."""
    ids = torch.empty(ranks * VIEWS, dtype=torch.int64, device="meta")
    sides = range(1 if joint else 2)
    layouts = [ViewLayout(side, ids, ids, tuple(range(0, ranks * VIEWS + 1, VIEWS))) for side in sides]
    features = [torch.empty(VIEWS, WIDTH, dtype=torch.bfloat16, device="meta") for _ in sides]
    return Exchange(CountingRanks(0, ranks), layouts, features, CountingRanks(0, unit))


def counted(ranks, unit, joint):
    """Return the bytes that both passes of the real schedule send to other units and within the unit."""
    exchange = exchange_of(ranks, unit, joint)
    exchange.accumulate(lambda _: None, (), torch.float32)
    exchange.accumulate(lambda _: None, (WIDTH,), torch.float32)
    return exchange.ranks.bytes_sent, exchange.unit.bytes_sent


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize(("ranks", "unit"), [(8, 8), (6, 3), (16, 4), (12, 4), (64, 8)])
def test_bytes_are_those_of_the_schedules(ranks, unit, joint):
    """With nothing but one kind of transfer taking time, waiting is bytes divided by the rate."""
    between, within = counted(ranks, unit, joint)
    sizes = sizes_of(ranks, unit, joint)
    assert schedule_cost(sizes, replace(INSTANT, between_nodes=1.0), unit).waiting == pytest.approx(between)
    assert schedule_cost(sizes, replace(INSTANT, within_node=1.0), unit).waiting == pytest.approx(within)
    ring, _ = counted(ranks, 1, joint)
    alone = sizes_of(ranks, 1, joint)
    assert schedule_cost(alone, replace(INSTANT, between_nodes=1.0), 1).waiting == pytest.approx(ring)


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize(("ranks", "unit"), [(2, 1), (8, 1), (16, 1), (2, 2), (8, 8), (16, 4), (6, 3)])
def test_no_more_is_held_than_predicted(ranks, unit, joint):
    exchange = exchange_of(ranks, unit, joint)
    exchange.accumulate(lambda _: None, (), torch.float32)
    kept = 0 if exchange.own_columns is None else exchange.own_columns.nbytes
    own = len(exchange.features) * VIEWS * WIDTH * 4
    with PeakBytes() as memory:
        exchange.accumulate(lambda _: None, (WIDTH,), torch.float32)
    held, predicted = memory.peak - own + kept, schedule_cost(sizes_of(ranks, unit, joint), INSTANT, unit).held
    assert held <= predicted
    if unit == ranks or (unit == 1 and ranks > 3):
        assert held == predicted


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("unit", [1, 4, 16])
def test_products_are_those_of_all_pairs(unit, joint):
    """Each pair of views once: 8 d operations, over all ranks 4 N^2 d of N views or 8 N^2 d of N pairs."""
    ranks = 16
    cost = schedule_cost(sizes_of(ranks, 4, joint), replace(INSTANT, products=1.0), unit)
    assert ranks * cost.computing == pytest.approx((4 if joint else 8) * (ranks * VIEWS) ** 2 * WIDTH)


@pytest.mark.parametrize("rates", [CPU, H100])
def test_the_choice_is_the_fastest_that_fits(rates):
    for ranks, views in product((2, 8, 64, 512, 1024), (64, 2560, 16_384)):
        sizes = sizes_of(ranks, min(8, ranks), True, views)
        costs = {name: schedule_cost(sizes, rates, unit) for name, unit in units(sizes).items()}
        chosen = choose_schedule(sizes, rates)
        fitting = {name: cost for name, cost in costs.items() if cost.held <= rates.memory}
        assert chosen in fitting or (chosen == "ring" and not fitting)
        assert all(costs[chosen].seconds <= cost.seconds for cost in fitting.values())
    assert "hierarchical" not in units(sizes_of(8, 8, True))
    assert "hierarchical" not in units(sizes_of(8, 1, True))


def test_the_choice_follows_the_network_and_the_memory():
    sizes = sizes_of(64, 8, True, 2560)
    slow = replace(H100, between_nodes=1e9)
    assert choose_schedule(sizes, slow) == "hierarchical"
    two = sizes_of(2, 2, True, 2560)
    assert choose_schedule(two, H100) == "gather"
    assert choose_schedule(two, replace(H100, memory=0)) == "ring"
