"""How the views of other ranks come by, and how what they are owed goes home.

A sweep looks at every pair of views once and leaves something, a sum or a gradient, for each view. A rank always
sweeps its own block against itself; `gather` and `ring` then let the blocks of other ranks visit so that every pair
of ranks meets exactly once (half of the ranks visit where one side meets itself), and what a visitor is owed is sent
back. `column` lets all visit and leaves nothing for them: similarities are symmetric, so a rank can make everything
that its own views are owed, at more arithmetic and the least traffic. The order of visits is fixed: results repeat
bit for bit.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from bali_ds.distributed import Ranks
from bali_ds.losses.contrastive.sorted_views import Side, ViewBlock

GATHERED_BYTES = 1 << 30  # what `auto` is ready to spend on views and gradients of other ranks

# (rows, columns, for the rows, for the columns or None, whether rows and columns are the same views): adds in place.
Sweep = Callable[[ViewBlock, ViewBlock, Tensor, Tensor | None, bool], None]


class Visit(NamedTuple):
    """A meeting of two ranks: whose block visits, and which part of either takes part."""

    owner: int
    rows: slice
    columns: slice


@dataclass
class Exchange:
    """The ranks' blocks and the way they meet.

    Attributes:
        ranks: who takes part.
        sides: one where the views meet each other, two where queries meet keys.
        own: float [n, d] features of this rank, one a side; they travel as they are.
        how: "gather", "ring" or "column".
    """

    ranks: Ranks
    sides: list[Side]
    own: list[Tensor]
    how: str
    _gathered: list[list[Tensor]] = field(default_factory=list)

    def sweep(
        self,
        sweep: Sweep,
        trailing: tuple[int, ...],
        dtype: torch.dtype,
        *,
        start: float = 0.0,
        combine: Callable[[Tensor, Tensor], Tensor] = torch.add,
        features: bool = True,
    ) -> list[Tensor]:
        """Run `sweep` over all pairs of views and return what this rank's views are owed, one tensor a side.

        Args:
            sweep: adds (or combines) in place what rows and columns are owed.
            trailing: shape of what one view is owed.
            dtype: of the same.
            start: its value before the first pair.
            combine: puts two partial results together.
            features: whether the sweep looks at the features of visitors.

        Returns:
            `dtype` [n, *trailing], one a side.
        """

        def fresh(count: int) -> Tensor:
            return torch.full((count, *trailing), start, dtype=dtype, device=self.own[0].device)

        mine = [side.block(self.ranks.rank, own) for side, own in zip(self.sides, self.own, strict=True)]
        owed = [fresh(len(block)) for block in mine]
        rows, columns = mine[0], mine[-1]
        if self.how == "column" and self.ranks.world_size > 1:
            for owner in range(self.ranks.world_size):
                for side, own in enumerate(mine):
                    visitor = self._visitor(len(mine) - 1 - side, owner, features)
                    sweep(own, visitor, owed[side], None, False)
            return owed
        sweep(rows, columns, owed[0], owed[-1], len(mine) == 1)
        travel = self._ring if self.how == "ring" else self._meet
        home = travel(sweep, rows, owed[0], fresh, combine, features) if self.ranks.world_size > 1 else []
        for returned in home:
            owed[-1] = combine(owed[-1], returned)
        return owed

    def _visits(self) -> Iterator[Visit]:
        """Whom this rank receives, in order; every pair of ranks meets once, or both ways for two sides."""
        size, rank, joint = self.ranks.world_size, self.ranks.rank, len(self.sides) == 1
        everything = slice(0, None)
        for hop in range(1, size // 2 + 1 if joint else size):
            owner = (rank - hop) % size
            if joint and 2 * hop == size:
                # Both ranks receive each other here, so each takes one half of the lower rank's views.
                starts = self.sides[0].starts
                half = (starts[min(rank, owner) + 1] - starts[min(rank, owner)]) // 2
                if rank < owner:
                    yield Visit(owner, slice(0, half), everything)
                else:
                    yield Visit(owner, everything, slice(half, None))
            else:
                yield Visit(owner, everything, everything)

    def _count(self, owner: int) -> int:
        return self.sides[-1].counts[owner]

    def _run(
        self, sweep: Sweep, visit: Visit, rows: ViewBlock, visitor: ViewBlock, owed: Tensor, across: Tensor
    ) -> None:
        first, last, _ = visit.rows.indices(len(rows))
        left, right, _ = visit.columns.indices(len(visitor))
        sweep(rows.part(first, last), visitor.part(left, right), owed[first:last], across[left:right], False)

    # Everything at hand: blocks are gathered once, and what visitors are owed is exchanged at the end.

    def _visitor(self, side: int, owner: int, features: bool) -> ViewBlock:
        if not self._gathered and features:
            for each, own in zip(self.sides, self.own, strict=True):
                self._gathered.append(list(self.ranks.all_gather_rows(own, each.counts).split(each.counts)))
        return self.sides[side].block(owner, self._gathered[side][owner] if self._gathered else None)

    def _meet(
        self,
        sweep: Sweep,
        rows: ViewBlock,
        owed: Tensor,
        fresh: Callable[[int], Tensor],
        _combine: Callable[[Tensor, Tensor], Tensor],
        features: bool,
    ) -> list[Tensor]:
        size = self.ranks.world_size
        outgoing: list[Tensor | None] = [None] * size
        for visit in self._visits():
            visitor = self._visitor(len(self.sides) - 1, visit.owner, features)
            outgoing[visit.owner] = across = fresh(len(visitor))
            self._run(sweep, visit, rows, visitor, owed, across)
        return self.ranks.all_to_all(outgoing, fresh(self._count(self.ranks.rank)), self._hosts())

    def _hosts(self) -> list[int]:
        """Which ranks this one visits, in the order of their hops."""
        size, last = (
            self.ranks.world_size,
            self.ranks.world_size // 2 if len(self.sides) == 1 else self.ranks.world_size - 1,
        )
        return [(self.ranks.rank + hop) % size for hop in range(1, last + 1)]

    # A ring: two visitors at a time are on a rank, and what is owed to a visitor goes on with it to the next rank.

    def _ring(
        self,
        sweep: Sweep,
        rows: ViewBlock,
        owed: Tensor,
        fresh: Callable[[int], Tensor],
        combine: Callable[[Tensor, Tensor], Tensor],
        features: bool,
    ) -> list[Tensor]:
        ranks, side = self.ranks, self.sides[-1]
        previous, following = (ranks.rank - 1) % ranks.world_size, (ranks.rank + 1) % ranks.world_size
        visits = list(self._visits())
        block: Tensor | None = None
        arriving = (
            ranks.start_send_receive(self.own[-1], following, self._arrival(visits[0].owner), previous)
            if features
            else None
        )
        owed_arriving = None
        for number, visit in enumerate(visits):
            coming = visits[number + 1].owner if number + 1 < len(visits) else None
            if arriving is not None:
                block = arriving()
                arriving = (
                    None
                    if coming is None
                    else ranks.start_send_receive(block, following, self._arrival(coming), previous)
                )
            visitor = side.block(visit.owner, block)
            across = fresh(len(visitor))
            self._run(sweep, visit, rows, visitor, owed, across)
            if owed_arriving is not None:
                across = combine(owed_arriving(), across)
            if coming is not None:
                owed_arriving = ranks.start_send_receive(across, following, fresh(self._count(coming)), previous)
        home = ranks.start_send_receive(across, visits[-1].owner, fresh(self._count(ranks.rank)), self._hosts()[-1])
        return [home()]

    def _arrival(self, owner: int) -> Tensor:
        return self.own[-1].new_empty((self._count(owner), self.own[-1].shape[1]))


def choose(communication: str, ranks: Ranks, sides: list[Side], width: int) -> str:
    """Return how the ranks meet: as asked, or for "auto" by what gathering would take."""
    if communication not in ("auto", "gather", "ring", "column"):
        raise ValueError(f"communication: {communication!r} is none of auto, gather, ring, column")
    if communication != "auto":
        return communication
    visitors = sides[-1].total * width * 4 * 2
    return "gather" if ranks.world_size == 1 or visitors <= GATHERED_BYTES else "ring"
