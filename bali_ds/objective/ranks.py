"""Rows of several ranks together: how many each holds, all of them in rank order, and one rank's sent to another."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass
class Ranks:
    """The ranks that share one loss; one alone where torch.distributed is not in use.

    Attributes:
        group: the process group, None for the default one.
        rank: this process's rank in the group.
        world_size: how many ranks there are.
        sent: bytes of payload that this rank has sent so far; a collective counts as its ring form sends.
    """

    group: dist.ProcessGroup | None
    rank: int
    world_size: int
    sent: int = 0

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
        self.sent += (self.world_size - 1) * mine.numel() * 8
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
            self.sent += (self.world_size - 1) * padded.numel() * padded.element_size()
            dist.all_gather(list(everyone.chunk(self.world_size)), padded, group=self.group)
        blocks = everyone.view(self.world_size, longest, *rows.shape[1:])
        return torch.cat([block[:count] for block, count in zip(blocks, counts, strict=True)])

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of `value` over the ranks, without gradients."""
        if self.world_size > 1:
            value = value.clone()
            self.sent += 2 * (self.world_size - 1) * value.numel() * value.element_size() // self.world_size
            dist.all_reduce(value, group=self.group)
        return value

    def exchange(self, outgoing: list[Tensor | None], like: Tensor, senders: list[int]) -> list[Tensor]:
        """Send one tensor to each rank that has one and return what came, in the order of `senders`.

        Args:
            outgoing: one tensor or None for each rank.
            like: a tensor of the shape and dtype in which every sender sends.
            senders: the ranks that send to this one.
        """
        given = [tensor for tensor in outgoing if tensor is not None]
        self.sent += sum(tensor.numel() * tensor.element_size() for tensor in given)
        incoming = like.new_empty(len(senders) * like.numel())
        dist.all_to_all_single(
            incoming,
            torch.cat([tensor.reshape(-1) for tensor in given]),
            [like.numel() * (rank in senders) for rank in range(self.world_size)],
            [0 if tensor is None else tensor.numel() for tensor in outgoing],
            group=self.group,
        )
        parts = dict(zip(sorted(senders), incoming.view(len(senders), *like.shape), strict=True))
        return [parts[rank] for rank in senders]

    def swap(self, tensor: Tensor, to: int, into: Tensor, sender: int) -> Callable[[], Tensor]:
        """Start sending `tensor` and receiving `into`; the returned function waits for both and gives `into`."""
        operations = []
        if tensor.numel():
            self.sent += tensor.numel() * tensor.element_size()
            operations.append(dist.P2POp(dist.isend, tensor.contiguous(), group=self.group, group_peer=to))
        if into.numel():
            operations.append(dist.P2POp(dist.irecv, into, group=self.group, group_peer=sender))
        pending = dist.batch_isend_irecv(operations) if operations else []

        def wait() -> Tensor:
            for work in pending:
                work.wait()
            operations.clear()  # they kept what is being sent alive
            return into

        return wait
