"""Exchange of view blocks between ranks, so that every pair of views is processed once.

A pass processes every pair of views and accumulates a value for each view: a sum, a maximum or a gradient. The ranks
form units, see `BlockSchedule`. The blocks of a unit are gathered on each of its ranks. They travel from unit to unit:
each rank sends its own part to the rank of its number in the next unit. What the ranks of a unit accumulate for its
columns is added up within the unit and travels behind them, and at last back to the rank that owns them.

- "gather": all ranks are one unit. Nothing travels; every rank holds the blocks of all ranks.
- "ring": each rank is a unit of its own, and holds two blocks of other ranks at a time. Nothing is gathered.
- "hierarchical": each node is a unit, so that a block enters a node once, and not once for each of its ranks.

While columns are processed, the next ones are gathered, those after them are in transfer (a ring's next ones are), and
what was accumulated for the last ones is on its way. The order is fixed, so results repeat bit for bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import NamedTuple

import torch
from torch import Tensor

from bali_ds.distributed import Ranks
from bali_ds.losses.contrastive.block_schedule import BlockSchedule, ScheduleStep
from bali_ds.losses.contrastive.sorted_views import BlockPair, ViewBlock, ViewLayout

BlockFunction = Callable[[BlockPair], None]
"""Processes all pairs of views of two blocks and updates their accumulators in place."""


class _Values(NamedTuple):
    """How the values of a pass are made for a number of views, and how partial values of one view are combined."""

    new: Callable[[int], Tensor]
    combine: Callable[[Tensor, Tensor], Tensor]


@dataclass
class Exchange:
    """The view blocks of all ranks, and the schedule in which pairs of blocks are processed.

    Attributes:
        ranks: all of them run the same passes.
        layouts: one if all views are compared with each other, two if queries are compared with keys.
        features: for each side float [n, d] of this rank, at unit length; they are sent in their dtype.
        unit: the ranks of this rank's unit: `ranks` itself, this rank alone, or those of its node.
        own_columns: float [columns of the unit, d], gathered in the first pass.
    """

    ranks: Ranks
    layouts: list[ViewLayout]
    features: list[Tensor]
    unit: Ranks
    own_columns: Tensor | None = None

    @cached_property
    def schedule(self) -> BlockSchedule:
        """The blocks that this rank processes."""
        return BlockSchedule(self.ranks.rank, self.ranks.world_size, self.unit.world_size, len(self.layouts) == 1)

    @property
    def resident(self) -> bool:
        """Whether the features of all ranks are on this rank in every pass."""
        return self.unit.world_size == self.ranks.world_size

    def accumulate(
        self,
        function: BlockFunction,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        *,
        start: float = 0.0,
        combine: Callable[[Tensor, Tensor], Tensor] = torch.add,
        features: bool = True,
        into: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """Process all pairs of views and return the accumulated values of this rank's views; a collective call.

        Args:
            function: processes one pair of blocks.
            shape: of the value of one view.
            dtype: of the values.
            start: their initial value.
            combine: combines partial values of one view.
            features: whether `function` reads the features of other ranks.
            into: for each side a tensor of initial values, which is used instead of a new one.

        Returns:
            for each side `dtype` [n, *shape].
        """

        def new(count: int) -> Tensor:
            return torch.full((count, *shape), start, dtype=dtype, device=self.features[0].device)

        own = [layout.block(self.ranks.rank, each) for layout, each in zip(self.layouts, self.features, strict=True)]
        accumulators = [new(len(block)) for block in own] if into is None else list(into)
        others = self.ranks.world_size > 1
        arrivals = _ColumnArrivals(self) if features and others else None
        function(BlockPair(own[0], own[-1], accumulators[0], accumulators[-1], symmetric=len(own) == 1))
        if others:
            returns = _ColumnReturns(self, _Values(new, combine))
            for hop in self.schedule.hops:
                steps = list(self.schedule.steps(hop))
                # Columns and sums get no name here: those of a hop are freed before the next hop's are made.
                returns.start(
                    hop,
                    steps,
                    self._process(
                        function, steps, arrivals.at(hop) if arrivals else None, own[0], accumulators[0], new
                    ),
                )
            for returned in returns.wait():
                accumulators[-1] = combine(accumulators[-1], returned)
        return accumulators

    def _process(
        self,
        function: BlockFunction,
        steps: Sequence[ScheduleStep],
        columns: Tensor | None,
        rows: ViewBlock,
        row_accumulator: Tensor,
        new: Callable[[int], Tensor],
    ) -> Tensor:
        """Process the steps of a hop; return what is accumulated for the columns of one step after the other."""
        layout, unit = self.layouts[-1], self.unit.world_size
        first = steps[0].owner // unit * unit
        sums = new(sum(layout.counts[step.owner] for step in steps))
        done = 0
        for step in steps:
            begin, end = (layout.offsets[owner] - layout.offsets[first] for owner in (step.owner, step.owner + 1))
            block = layout.block(step.owner, None if columns is None else columns[begin:end])
            accumulator = sums[done : done + len(block)]
            done += len(block)
            half = self.layouts[0].counts[min(self.ranks.rank, step.owner)] // 2
            top = half if step.half == "rows" else len(rows)
            left = half if step.half == "columns" else 0
            function(
                BlockPair(rows.part(0, top), block.part(left, len(block)), row_accumulator[:top], accumulator[left:])
            )
        return sums


class _ColumnArrivals:
    """The features of the columns of one hop after the other, with those of the next in transfer."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange, self.schedule = exchange, exchange.schedule
        self.alone = exchange.unit.world_size == 1
        mine, own_unit = exchange.features[-1], exchange.own_columns
        if self.schedule.last_hop:
            self.part = self._start_transfer(mine, 1)
        if own_unit is not None:  # gathered by an earlier pass
            self.gathered = lambda: own_unit
        elif not self.alone:
            self.gathered = self._start_gathering(mine, 0)

    def at(self, hop: int) -> Tensor:
        """Return the features of a hop's columns, and start the transfers that the next hops wait for."""
        last_hop = self.schedule.last_hop
        if self.alone:
            part = self.part()
            if hop < last_hop:
                self.part = self._start_transfer(part, hop + 1)
            return part
        columns = self.gathered()
        if hop == 0:
            self.exchange.own_columns = columns
        if hop < last_hop:
            part = self.part()
            self.gathered = self._start_gathering(part, hop + 1)
            if hop + 1 < last_hop:
                self.part = self._start_transfer(part, hop + 2)
        return columns

    def _start_gathering(self, part: Tensor, hop: int) -> Callable[[], Tensor]:
        members = self.schedule.members(hop)
        counts = self.exchange.layouts[-1].counts[members.start : members.stop]
        return self.exchange.unit.start_all_gather_rows(part, counts)

    def _start_transfer(self, part: Tensor, hop: int) -> Callable[[], Tensor]:
        count = self.exchange.layouts[-1].counts[self.schedule.column_owner(hop)]
        buffer = part.new_empty((count, part.shape[1]))
        return self.exchange.ranks.start_send_receive(
            part, self.schedule.neighbor(1), buffer, self.schedule.neighbor(-1)
        )


class _ColumnReturns:
    """What is accumulated for columns, on its way to the ranks that own them."""

    def __init__(self, exchange: Exchange, values: _Values) -> None:
        self.exchange, self.schedule, self.values = exchange, exchange.schedule, values
        self.counts = exchange.layouts[-1].counts
        self.in_unit: tuple[int, Callable[[], Tensor]] | None = None
        self.traveling: Callable[[], Tensor] | None = None
        self.returned: list[Tensor] = []

    def start(self, hop: int, steps: Sequence[ScheduleStep], sums: Tensor) -> None:
        """Start adding up within the unit what its ranks accumulated at a hop, and send on what was before it."""
        if self.exchange.unit.world_size == 1:
            self._send_on(hop, sums)
            return
        self._finish_unit()
        owners = {step.owner for step in steps}
        sent = [self.counts[member] * (member in owners) for member in self.schedule.members(hop)]
        mine = self.counts[self.schedule.column_owner(hop)]
        received = [mine * processed for processed in self.schedule.processed_by(hop)]
        self.in_unit = hop, self.exchange.unit.start_all_to_all_rows(sums, sent, received)

    def wait(self) -> list[Tensor]:
        """Return the values of this rank's columns that other ranks accumulated."""
        self._finish_unit()
        if self.traveling:
            return [*self.returned, self.traveling()]
        return self.returned

    def _finish_unit(self) -> None:
        """Add up what the unit accumulated, and keep it if it is this rank's own, else send it on."""
        if self.in_unit is None:
            return
        hop, arrived = self.in_unit
        rows, number = arrived(), sum(self.schedule.processed_by(hop))
        total = reduce(self.values.combine, rows.view(number, len(rows) // number, *rows.shape[1:]).unbind())
        if hop == 0:
            self.returned.append(total)
        else:
            self._send_on(hop, total)

    def _send_on(self, hop: int, total: Tensor) -> None:
        """Combine what the unit accumulated with what the units before it did, and send it to the next unit."""
        if self.traveling is not None:
            total = self.values.combine(self.traveling(), total)
            self.traveling = None  # frees what arrived
        last = hop == self.schedule.last_hop
        to, sender = (self.schedule.neighbor(-hop), self.schedule.neighbor(hop)) if last else (
            self.schedule.neighbor(1), self.schedule.neighbor(-1)
        )  # fmt: skip
        coming = self.exchange.ranks.rank if last else self.schedule.column_owner(hop + 1)
        into = self.values.new(self.counts[coming])
        self.traveling = self.exchange.ranks.start_send_receive(total, to, into, sender)
