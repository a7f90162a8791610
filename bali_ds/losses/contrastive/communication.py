"""Exchange of view blocks between ranks, so that every pair of views is processed once.

A pass processes every pair of views and accumulates a value for each view: a sum, a maximum or a gradient. A rank
always processes its own block against itself. What else it processes depends on the algorithm:

- "gather": all blocks are gathered on every rank. Each pair of ranks is processed by one of the two, which sends
  the other's accumulator back at the end.
- "ring": blocks travel from rank to rank, and the accumulator of a block travels with it. A rank holds two blocks of
  other ranks at a time.
- "column": every rank processes its own block against all blocks and sends nothing back. As similarities are
  symmetric, that is twice the arithmetic for the least traffic.

The order is fixed, so results repeat bit for bit.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from bali_ds.distributed import Ranks
from bali_ds.losses.contrastive.sorted_views import BlockPair, ViewBlock, ViewLayout

ALGORITHMS = ("auto", "gather", "ring", "column")
GATHERED_BYTES = 1 << 30  # "auto" gathers if features and gradients of all ranks take at most this

BlockFunction = Callable[[BlockPair], None]
"""Processes all pairs of views of two blocks and updates their accumulators in place."""


class ScheduleStep(NamedTuple):
    """One step of a rank: whose block it processes, and which rows of its own and columns of that block."""

    owner: int
    rows: slice
    columns: slice


@dataclass
class Exchange:
    """The view blocks of all ranks, and the schedule in which pairs of blocks are processed.

    Attributes:
        ranks: all of them run the same passes.
        layouts: one if all views are compared with each other, two if queries are compared with keys.
        features: for each side float [n, d] of this rank, at unit length; they are sent in their dtype.
        algorithm: "gather", "ring" or "column".
    """

    ranks: Ranks
    layouts: list[ViewLayout]
    features: list[Tensor]
    algorithm: str
    _gathered: list[list[Tensor]] = field(default_factory=list)

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

        def new_accumulator(count: int) -> Tensor:
            return torch.full((count, *shape), start, dtype=dtype, device=self.features[0].device)

        own = [layout.block(self.ranks.rank, each) for layout, each in zip(self.layouts, self.features, strict=True)]
        accumulators = [new_accumulator(len(block)) for block in own] if into is None else list(into)
        if self.algorithm == "column" and self.ranks.world_size > 1:
            for owner in range(self.ranks.world_size):
                for side, rows in enumerate(own):
                    columns = self._gathered_block(len(own) - 1 - side, owner, features)
                    function(BlockPair(rows, columns, accumulators[side], None))
            return accumulators
        function(BlockPair(own[0], own[-1], accumulators[0], accumulators[-1], symmetric=len(own) == 1))
        if self.ranks.world_size > 1:
            algorithm = self._ring if self.algorithm == "ring" else self._gather
            for returned in algorithm(function, own[0], accumulators[0], new_accumulator, combine, features):
                accumulators[-1] = combine(accumulators[-1], returned)
        return accumulators

    def _schedule(self) -> Iterator[ScheduleStep]:
        """Yield the blocks that this rank processes; every pair of ranks once, or both ways if there are two sides."""
        size, rank, joint = self.ranks.world_size, self.ranks.rank, len(self.layouts) == 1
        everything = slice(0, None)
        for hop in range(1, self._last_hop() + 1):
            owner = (rank - hop) % size
            if joint and 2 * hop == size:
                # Both ranks have each other's block here, so each takes one half of the lower rank's views.
                offsets = self.layouts[0].offsets
                half = (offsets[min(rank, owner) + 1] - offsets[min(rank, owner)]) // 2
                if rank < owner:
                    yield ScheduleStep(owner, slice(0, half), everything)
                else:
                    yield ScheduleStep(owner, everything, slice(half, None))
            else:
                yield ScheduleStep(owner, everything, everything)

    def _last_hop(self) -> int:
        return self.ranks.world_size // 2 if len(self.layouts) == 1 else self.ranks.world_size - 1

    def _destinations(self) -> list[int]:
        """Return the ranks that process this rank's block, in the order of the hops."""
        return [(self.ranks.rank + hop) % self.ranks.world_size for hop in range(1, self._last_hop() + 1)]

    def _count(self, owner: int) -> int:
        return self.layouts[-1].counts[owner]

    def _process(
        self,
        function: BlockFunction,
        step: ScheduleStep,
        rows: ViewBlock,
        columns: ViewBlock,
        row_accumulator: Tensor,
        column_accumulator: Tensor,
    ) -> None:
        first, last, _ = step.rows.indices(len(rows))
        left, right, _ = step.columns.indices(len(columns))
        accumulators = row_accumulator[first:last], column_accumulator[left:right]
        function(BlockPair(rows.part(first, last), columns.part(left, right), *accumulators))

    def _gathered_block(self, side: int, owner: int, features: bool) -> ViewBlock:
        if not self._gathered and features:
            for layout, own in zip(self.layouts, self.features, strict=True):
                self._gathered.append(list(self.ranks.all_gather_rows(own, layout.counts).split(layout.counts)))
        return self.layouts[side].block(owner, self._gathered[side][owner] if self._gathered else None)

    def _gather(
        self,
        function: BlockFunction,
        rows: ViewBlock,
        row_accumulator: Tensor,
        new_accumulator: Callable[[int], Tensor],
        _combine: Callable[[Tensor, Tensor], Tensor],
        features: bool,
    ) -> list[Tensor]:
        """Process this rank's steps and return what other ranks accumulated for this rank's columns."""
        outgoing: list[Tensor | None] = [None] * self.ranks.world_size
        for step in self._schedule():
            columns = self._gathered_block(len(self.layouts) - 1, step.owner, features)
            outgoing[step.owner] = column_accumulator = new_accumulator(len(columns))
            self._process(function, step, rows, columns, row_accumulator, column_accumulator)
        like = new_accumulator(self._count(self.ranks.rank))
        return self.ranks.all_to_all(outgoing, like, self._destinations())

    def _ring(
        self,
        function: BlockFunction,
        rows: ViewBlock,
        row_accumulator: Tensor,
        new_accumulator: Callable[[int], Tensor],
        combine: Callable[[Tensor, Tensor], Tensor],
        features: bool,
    ) -> list[Tensor]:
        """The same, with the next block in transfer while one is processed, and accumulators behind their blocks."""
        ranks, layout = self.ranks, self.layouts[-1]
        previous, following = (ranks.rank - 1) % ranks.world_size, (ranks.rank + 1) % ranks.world_size
        steps = list(self._schedule())
        block: Tensor | None = None
        arriving_block = (
            ranks.start_send_receive(self.features[-1], following, self._receive_buffer(steps[0].owner), previous)
            if features
            else None
        )
        arriving_accumulator = None
        for number, step in enumerate(steps):
            next_owner = steps[number + 1].owner if number + 1 < len(steps) else None
            if arriving_block is not None:
                block = arriving_block()
                arriving_block = (
                    None
                    if next_owner is None
                    else ranks.start_send_receive(block, following, self._receive_buffer(next_owner), previous)
                )
            columns = layout.block(step.owner, block)
            accumulator = new_accumulator(len(columns))
            self._process(function, step, rows, columns, row_accumulator, accumulator)
            if arriving_accumulator is not None:
                accumulator = combine(arriving_accumulator(), accumulator)
            if next_owner is not None:
                arriving_accumulator = ranks.start_send_receive(
                    accumulator, following, new_accumulator(self._count(next_owner)), previous
                )
        own = new_accumulator(self._count(ranks.rank))
        return [ranks.start_send_receive(accumulator, steps[-1].owner, own, self._destinations()[-1])()]

    def _receive_buffer(self, owner: int) -> Tensor:
        return self.features[-1].new_empty((self._count(owner), self.features[-1].shape[1]))


def choose_algorithm(communication: str, ranks: Ranks, layouts: list[ViewLayout], width: int) -> str:
    """Return the algorithm of an `Exchange`: the given one, or for "auto" by the memory that gathering takes.

    Raises:
        ValueError: `communication` is not in `ALGORITHMS`.
    """
    if communication not in ALGORITHMS:
        raise ValueError(f"communication: {communication!r} is not one of {', '.join(ALGORITHMS)}")
    if communication != "auto":
        return communication
    gathered = layouts[-1].num_views * width * 4 * 2
    return "gather" if ranks.world_size == 1 or gathered <= GATHERED_BYTES else "ring"
