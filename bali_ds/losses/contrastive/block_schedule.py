"""Which blocks of views a rank processes, in which order, and who sends them to it.

The ranks form units of equally many ranks, one after the other: all ranks ("gather"), each rank by itself ("ring"), or
those of a node ("hierarchical"). A rank processes its rows against the blocks of its own unit at hop 0, and then
against those of the unit `hop` units before its own. A rank by itself starts at hop 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple


class ScheduleStep(NamedTuple):
    """One step of a rank.

    Attributes:
        owner: the rank whose block is processed.
        half: "rows": only the first half of this rank's rows; "columns": only the second half of the columns, which the
            first half of the owner's rows leaves; None: everything.
    """

    owner: int
    half: Literal["rows", "columns"] | None = None


@dataclass(frozen=True)
class BlockSchedule:
    """The steps of one rank: over all ranks each pair of ranks occurs once, or both ways if there are two sides.

    Attributes:
        rank: this rank.
        ranks: the number of all.
        unit: the number of ranks of a unit, which divides that.
        joint: whether all views are compared with each other; else queries are compared with keys.
    """

    rank: int
    ranks: int
    unit: int
    joint: bool

    @property
    def units(self) -> int:
        """The number of units."""
        return self.ranks // self.unit

    @property
    def last_hop(self) -> int:
        """The number of the last hop."""
        return self._last_of(self.units)

    @property
    def hops(self) -> range:
        """The hops with steps: the first one of a unit of one rank has none."""
        return range(int(self.unit == 1), self.last_hop + 1)

    def steps(self, hop: int) -> Iterator[ScheduleStep]:
        """Yield the steps of a hop, by owner."""
        for owner in self.members(hop):
            # Of two units, or two ranks of a unit, that lie half a turn apart, each has the other's blocks.
            shared = self.joint and 2 * hop == self.units
            if hop == 0:
                distance = (self.rank - owner) % self.unit
                if not 1 <= distance <= self._last_of(self.unit):
                    continue
                shared = self.joint and 2 * distance == self.unit
            half: Literal["rows", "columns"] = "rows" if self.rank < owner else "columns"
            yield ScheduleStep(owner, half if shared else None)

    def members(self, hop: int) -> range:
        """Return the ranks of the unit whose blocks are processed at a hop."""
        first = (self.rank // self.unit - hop) % self.units * self.unit
        return range(first, first + self.unit)

    def processed_by(self, hop: int) -> list[bool]:
        """Return for each rank of this rank's unit whether it processes the block of `column_owner` at a hop."""
        if hop:
            return [True] * self.unit
        distances = [(member - self.rank) % self.unit for member in self.members(0)]
        return [1 <= distance <= self._last_of(self.unit) for distance in distances]

    def column_owner(self, hop: int) -> int:
        """Return whose block this rank receives from the unit before its own, and sends on to the next unit."""
        return self.neighbor(-hop)

    def neighbor(self, units: int) -> int:
        """Return the rank of this rank's number so many units after its own."""
        return (self.rank + units * self.unit) % self.ranks

    def _last_of(self, number: int) -> int:
        return number // 2 if self.joint else number - 1
