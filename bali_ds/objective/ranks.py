"""Rows of several ranks together: how many each holds, and all of them in rank order."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """The ranks that share one loss; one alone where torch.distributed is not in use.

    Attributes:
        group: the process group, None for the default one.
        rank: this process's rank in the group.
        world_size: how many ranks there are.
    """

    group: dist.ProcessGroup | None
    rank: int
    world_size: int

    @classmethod
    def of(cls, group: dist.ProcessGroup | None) -> "Ranks":
        """Return the ranks of `group` (None: the default group, or this process alone)."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls(None, 0, 1)
        return cls(group, dist.get_rank(group), dist.get_world_size(group))

    def counts(self, *local: int, device: torch.device) -> list[list[int]]:
        """Return the row counts of every rank, [world_size][len(local)], in one collective."""
        if self.world_size == 1:
            return [list(local)]
        mine = torch.tensor(local, dtype=torch.int64, device=device)
        everyone = torch.empty(self.world_size * len(local), dtype=torch.int64, device=device)
        dist.all_gather(list(everyone.chunk(self.world_size)), mine, group=self.group)
        return everyone.view(self.world_size, len(local)).tolist()

    def gather(self, rows: Tensor, counts: list[int]) -> Tensor:
        """Return the rows of all ranks in rank order, [sum(counts), ...], without gradients."""
        if self.world_size == 1:
            return rows
        longest = max(counts)
        padded = rows.new_zeros((longest, *rows.shape[1:]))
        padded[: len(rows)] = rows
        everyone = rows.new_empty((self.world_size * longest, *rows.shape[1:]))
        if longest:
            dist.all_gather(list(everyone.chunk(self.world_size)), padded, group=self.group)
        blocks = everyone.view(self.world_size, longest, *rows.shape[1:])
        return torch.cat([block[:count] for block, count in zip(blocks, counts, strict=True)])

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of `value` over the ranks, without gradients."""
        if self.world_size > 1:
            value = value.clone()
            dist.all_reduce(value, group=self.group)
        return value
