"""Predicted time and memory of each schedule of the loss, from its sizes and rates of the hardware, and the choice.

Everything is a function of numbers that all ranks know, so that all of them choose the same schedule.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from bali_ds.losses.contrastive.block_schedule import BlockSchedule

SCHEDULES = ("gather", "hierarchical", "ring")  # of equally fast ones the first is chosen
SUM_BYTES = 4  # of a gradient's value, in which it is accumulated and sent


@dataclass(frozen=True)
class HardwareRates:
    """Rates of the ranks' devices and of what connects them.

    Attributes:
        within_node: bytes per second that a rank sends to ranks of its node.
        between_nodes: bytes per second that a rank sends to other nodes, all ranks of its node at once.
        message: seconds from the start of a message until it arrives, besides its bytes.
        products: FLOP/s of the loss.
        memory: bytes that features and accumulators of other ranks may take (chosen).
        call: seconds of the host for one pass over a pair of blocks.
    """

    within_node: float
    between_nodes: float
    message: float
    products: float
    memory: int
    call: float


H100 = HardwareRates(
    within_node=360e9,  # of all-gather on eight H100, by their vendor the expected rate (NVIDIA/nccl-tests issue 326)
    between_nodes=40e9,  # a port of 400 Gb/s and messages of 16 MB (NVIDIA/nccl-tests issue 232); at most 48e9
    message=31e-6,  # of NCCL between two nodes, below 4 KB (NVIDIA/nccl-tests issue 214)
    products=8 * 65_536**2 * 768 / 0.051,  # measured: `clip` of 65,536 pairs takes 51 ms (docs/gpu.md)
    memory=2 << 30,  # a fortieth of the device's
    call=4 * 58e-6,  # four launches (counted), each of which takes the host 58 us (measured: 71 in 4.1 ms, docs/gpu.md)
)
CPU = HardwareRates(
    within_node=0.9e9,  # measured: 4 MB of gloo between two processes of one machine, both ways at once
    between_nodes=2.5e9,  # assumed: 25 Gb/s at 80 %
    message=71e-6,  # measured: 256 bytes, the same way
    memory=1 << 30,
    products=2.0e11,  # measured: `clip` of 16,384 pairs takes 8.3 s (docs/loss.md)
    call=1.3e-3,  # measured: `clip` of 256 pairs takes 6 ms, three passes of which products are 2 ms (docs/loss.md)
)


class LossSizes(NamedTuple):
    """Sizes of a step's loss.

    Attributes:
        ranks: the number of ranks.
        ranks_per_node: ranks of a node; 1 if that is unknown.
        rows: views of a rank that are compared with the columns, the most of any rank.
        columns: views of a rank that are sent, the most of any rank.
        width: features of a view.
        itemsize: bytes of a feature.
        joint: whether all views are compared with each other; rows and columns are the same views then.
        passes: passes in which features are read.
    """

    ranks: int
    ranks_per_node: int
    rows: int
    columns: int
    width: int
    itemsize: int
    joint: bool
    passes: int = 2


class ScheduleCost(NamedTuple):
    """What a schedule costs the busiest rank in one step.

    Attributes:
        computing: seconds of products, or of the host where these are too small to keep the device busy.
        waiting: seconds of transfers that computation does not hide.
        held: bytes of features and accumulators of other ranks at the peak.
    """

    computing: float
    waiting: float
    held: int

    @property
    def seconds(self) -> float:
        """Both together."""
        return self.computing + self.waiting


def units(sizes: LossSizes) -> dict[str, int]:
    """Return the schedules that the ranks allow, each with the number of ranks of its units."""
    possible = {"gather": sizes.ranks, "hierarchical": sizes.ranks_per_node, "ring": 1}
    between = 1 < sizes.ranks_per_node < sizes.ranks
    return {name: unit for name, unit in possible.items() if name != "hierarchical" or between}


def choose_schedule(sizes: LossSizes, rates: HardwareRates) -> str:
    """Return the fastest schedule of those that fit into memory; the ring holds least and is taken if none does."""
    costs = {name: schedule_cost(sizes, rates, unit) for name, unit in units(sizes).items()}
    fitting = [name for name, cost in costs.items() if cost.held <= rates.memory]
    return min(fitting, key=lambda name: costs[name].seconds, default="ring")


def cost_of(sizes: LossSizes, rates: HardwareRates, communication: str) -> ScheduleCost:
    """Return the cost of a schedule, or with "auto" of the one that is chosen.

    Nothing is held of others and nothing waits on a single rank.
    """
    schedule = choose_schedule(sizes, rates) if communication == "auto" else communication
    units = {"gather": sizes.ranks, "hierarchical": sizes.ranks_per_node, "ring": 1}
    return schedule_cost(sizes, rates, units[schedule])


def schedule_cost(sizes: LossSizes, rates: HardwareRates, unit: int) -> ScheduleCost:
    """Return the cost of the schedule with units of so many ranks.

    A pair of views takes 8 d operations: 2 d for its similarity in each of two passes, 4 d for both gradients. Passes
    between these two read positives alone.
    """
    schedule = BlockSchedule(0, sizes.ranks, unit, sizes.joint)
    transfers = _Transfers(sizes, rates, unit)
    to_members = sum(1 for _ in schedule.steps(0))  # blocks of the own unit that other ranks of it own
    in_unit = (unit - 1) / 2 if sizes.joint else unit - 1  # of which two ranks may share one
    halved = sizes.joint and schedule.units % 2 == 0  # the last hop
    last_pass = sizes.passes - 1
    computing, waiting = 0.0, 0.0
    for number in range(sizes.passes):
        share = {0: 2 / 8, last_pass: 6 / 8}.get(number, 0.0)
        own = _seconds(sizes, rates, share, 0.5 if sizes.joint else 1, 1)
        within = _seconds(sizes, rates, share, in_unit, to_members)
        a_hop = _seconds(sizes, rates, share, unit, unit)
        half = _seconds(sizes, rates, share, unit / 2, unit)
        computing += own + within + (schedule.last_hop - halved) * a_hop + halved * half
        if number == 0:
            waiting += max(0.0, transfers.gather() - own)
        value = sizes.width if number == last_pass else 1
        features, sums = transfers.features(), transfers.sums(unit, value) + transfers.travel(value)
        if schedule.last_hop:
            waiting += max(0.0, features - own - within) + max(0.0, transfers.sums(to_members, value) - a_hop) + sums
            waiting += (schedule.last_hop - 1) * max(0.0, features + sums - a_hop)
        else:
            waiting += transfers.sums(to_members, value)
    return ScheduleCost(computing, waiting, _held(sizes, unit))


def _seconds(sizes: LossSizes, rates: HardwareRates, share: float, blocks: float, calls: int) -> float:
    operations = share * 8 * sizes.rows * sizes.columns * sizes.width * blocks
    return max(operations / rates.products, calls * rates.call)


@dataclass(frozen=True)
class _Transfers:
    """Seconds of the transfers of one hop."""

    sizes: LossSizes
    rates: HardwareRates
    unit: int

    def features(self) -> float:
        """The features of a unit's columns to the next unit, and within it to all of its ranks."""
        return self._to_next_unit(self._features) + self.gather()

    def gather(self) -> float:
        """The features of a unit's columns within it, by rings in which each rank of a node sends to another node."""
        others = self.unit - 1
        between = (self.unit - self._local) * self._features / (self._local * self.rates.between_nodes)
        return max(others * self._features / self.rates.within_node, between) + self._start(self.unit)

    def sums(self, blocks: int, value: int) -> float:
        """What is accumulated for so many blocks, `value` numbers a view, to the ranks of the unit that collect it."""
        sent = blocks - (blocks == self.unit)  # one may stay
        near = sent * (self._local - 1) / max(1, self.unit - 1)
        volume = self.sizes.columns * value * SUM_BYTES
        seconds = near * volume / self.rates.within_node + (sent - near) * volume / self.rates.between_nodes
        return seconds + self._start(self.unit)

    def travel(self, value: int) -> float:
        """What is accumulated for one block, to the next unit."""
        return self._to_next_unit(self.sizes.columns * value * SUM_BYTES)

    @property
    def _local(self) -> int:
        return min(self.sizes.ranks_per_node, self.unit)

    @property
    def _features(self) -> int:
        return self.sizes.columns * self.sizes.width * self.sizes.itemsize

    def _to_next_unit(self, volume: int) -> float:
        one_node = self.sizes.ranks <= self.sizes.ranks_per_node
        return volume / (self.rates.within_node if one_node else self.rates.between_nodes) + self.rates.message

    def _start(self, ranks: int) -> float:
        return math.log2(ranks) * self.rates.message


def _held(sizes: LossSizes, unit: int) -> int:
    """Return the bytes of features and accumulators of other ranks at the peak, in the pass of gradients."""
    block = sizes.columns * sizes.width
    if sizes.ranks == 1:
        return 0
    if unit == sizes.ranks:
        returned = unit // 2 if sizes.joint else unit - 1  # on their way to and from others
        return block * (unit * sizes.itemsize + 2 * returned * SUM_BYTES)
    if unit == 1:
        features, accumulators = 2, 3  # this hop's and the next one's; this hop's, what was sent and what arrives
    else:
        features = unit + 2 * unit + 2  # of the own unit, this hop's, the next one's, the parts in transfer
        accumulators = 3 * unit + 2  # this hop's, the last one's to and from the unit, the block in transfer
    return block * (features * sizes.itemsize + accumulators * SUM_BYTES)
