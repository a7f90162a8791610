"""The cost model of the schedules: its bytes are those that they send and hold, and its choice fits into memory."""

import math
from dataclasses import dataclass, field, replace
from itertools import product

import pytest
import torch

from bali_ds.distributed import Ranks
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


def exchange_of(ranks, unit, joint, views=VIEWS):
    """Return the exchange of the first rank, whose features exist in shape alone."""
    ids = torch.empty(ranks.world_size * views, dtype=torch.int64, device="meta")
    sides = range(1 if joint else 2)
    layouts = [ViewLayout(side, ids, ids, tuple(range(0, len(ids) + 1, views))) for side in sides]
    features = [torch.empty(views, WIDTH, dtype=torch.bfloat16, device="meta") for _ in sides]
    return Exchange(ranks, layouts, features, unit)


def counted(ranks, unit, joint):
    """Return the bytes that both passes of the real schedule send to other units and within the unit."""
    exchange = exchange_of(CountingRanks(0, ranks), CountingRanks(0, unit), joint)
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
    exchange = exchange_of(CountingRanks(0, ranks), CountingRanks(0, unit), joint)
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


@dataclass
class ClockedRanks(Ranks):
    """One rank of many, all of which do the same at the same time, with a clock that transfers and products move.

    Attributes:
        clock: the seconds of this rank, and those at which its last transfer ends; a rank and its unit share them.
        sizes: of the loss.
        rates: of the hardware.
    """

    clock: list[float] = field(default_factory=lambda: [0.0, 0.0])
    sizes: LossSizes | None = None
    rates: HardwareRates = INSTANT

    def start_all_gather_rows(self, rows, counts):
        near = min(self.sizes.ranks_per_node, self.world_size)
        far = (self.world_size - near) * rows.nbytes / near  # each rank of a node takes a part of them
        everyone = rows.new_empty((sum(counts), *rows.shape[1:]))
        slower = max((self.world_size - 1) * rows.nbytes / self.rates.within_node, far / self.rates.between_nodes)
        return self._transfer(slower + self._messages(), everyone)

    def start_all_to_all_rows(self, rows, sent, received):
        near = sum(sent[1 : self.sizes.ranks_per_node]) * rows[:1].nbytes
        far = sum(sent[self.sizes.ranks_per_node :]) * rows[:1].nbytes
        seconds = near / self.rates.within_node + far / self.rates.between_nodes
        return self._transfer(seconds + self._messages(), rows.new_empty((sum(received), *rows.shape[1:])))

    def start_send_receive(self, tensor, to, into, sender):
        del to, sender
        one_node = self.sizes.ranks <= self.sizes.ranks_per_node
        rate = self.rates.within_node if one_node else self.rates.between_nodes
        return self._transfer(tensor.nbytes / rate + self.rates.message, into)

    def _messages(self):
        return math.log2(self.world_size) * self.rates.message

    def _transfer(self, seconds, result):
        ends = self.clock[1] = max(self.clock) + seconds

        def wait():
            self.clock[0] = max(self.clock[0], ends)
            return result

        return wait


def clocked(sizes, rates, unit):
    """Return the seconds of both passes of the real schedule."""
    everyone = ClockedRanks(0, sizes.ranks, sizes=sizes, rates=rates)
    members = ClockedRanks(0, unit, sizes=sizes, rates=rates, clock=everyone.clock)
    exchange = exchange_of(everyone, members, sizes.joint, sizes.columns)
    for operations, shape in ((2, ()), (6, (WIDTH,))):

        def process(pair, operations=operations):
            products = operations * len(pair.rows) * len(pair.columns) * WIDTH / (2 if pair.symmetric else 1)
            everyone.clock[0] += max(products / rates.products, rates.call)

        exchange.accumulate(process, shape, torch.float32)
    return max(everyone.clock)


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("rates", [CPU, H100, replace(H100, between_nodes=1e9)], ids=["CPU", "H100", "slow network"])
def test_the_choice_is_the_fastest_by_a_clock_that_follows_the_schedules(rates, joint):
    for ranks, views in product((2, 8, 64, 128), (64, 2560, 16_384)):
        sizes = sizes_of(ranks, min(8, ranks), joint, views)
        seconds = {name: clocked(sizes, rates, unit) for name, unit in units(sizes).items()}
        predicted = {name: schedule_cost(sizes, rates, unit).seconds for name, unit in units(sizes).items()}
        assert predicted == pytest.approx(seconds, rel=0.11), (ranks, views)
        chosen = choose_schedule(sizes, replace(rates, memory=1 << 60))
        assert seconds[chosen] <= 1.01 * min(seconds.values()), (ranks, views)


def test_a_schedule_that_does_not_fit_is_not_chosen():
    sizes = sizes_of(64, 8, True, 2560)
    held = {name: schedule_cost(sizes, H100, unit).held for name, unit in units(sizes).items()}
    assert held["ring"] < held["hierarchical"] < held["gather"]
    fast = replace(INSTANT, message=1.0)  # the fewer messages one after the other, the better: gather
    for memory, chosen in (
        (held["gather"], "gather"),
        (held["gather"] - 1, "hierarchical"),
        (held["hierarchical"] - 1, "ring"),
        (0, "ring"),
    ):
        assert choose_schedule(sizes, replace(fast, memory=memory)) == chosen


def test_nodes_are_units_only_where_there_are_several_of_several_ranks():
    assert set(units(sizes_of(16, 8, True))) == {"gather", "hierarchical", "ring"}
    assert set(units(sizes_of(8, 8, True))) == set(units(sizes_of(8, 1, True))) == {"gather", "ring"}


def test_the_choice_follows_the_network_and_the_memory():
    sizes = sizes_of(64, 8, True, 2560)
    slow = replace(H100, between_nodes=1e9)
    assert choose_schedule(sizes, slow) == "hierarchical"
    two = sizes_of(2, 2, True, 2560)
    assert choose_schedule(two, H100) == "gather"
    assert choose_schedule(two, replace(H100, memory=0)) == "ring"
