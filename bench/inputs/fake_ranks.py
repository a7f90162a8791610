"""Ranks that are threads of one process, or alone in it: they run the real exchanges and count what they send."""

import pickle
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bali_ds.distributed import Ranks, reduction_groups


@dataclass
class FakeRanks(Ranks):
    """A rank whose exchanges of numbers, objects and tensors go through queues.

    Attributes:
        mailboxes: the queues of all ranks, by sender and receiver.
        messages: messages that this rank has sent.
        payload: bytes of the objects that it has sent or received, and 8 for each number that it has sent.
        peers: the ranks that it has exchanged anything with, each a connection of its own.
    """

    mailboxes: dict[tuple[int, int], "queue.SimpleQueue[Any]"] = field(default_factory=dict)
    messages: int = 0
    payload: int = 0
    peers: set[int] = field(default_factory=set)

    def _all_reduce_max(self, number: Tensor, group: Any) -> None:
        """Reduce over the members of a group, and count the messages of a ring."""
        others = [rank for rank in group if rank != self.rank]
        for rank in others:
            self._mailbox(self.rank, rank).put(int(number))
        number.fill_(max([int(number), *(self._mailbox(rank, self.rank).get(timeout=60) for rank in others)]))
        self.messages += 2 * len(others)
        self.payload += 16 * len(others)
        place = group.index(self.rank)
        self.peers |= {group[place - 1], group[(place + 1) % len(group)]} - {self.rank}

    def _send(self, value: Any, to: int) -> None:
        payload = pickle.dumps(value)
        self._put(payload, to, len(payload))

    def _receive(self, sender: int) -> Any:
        payload: bytes = self._get(sender)
        self.payload += len(payload)
        return pickle.loads(payload)

    def _put(self, item: Any, to: int, size: int) -> None:
        self.messages, self.payload = self.messages + 1, self.payload + size
        self.peers.add(to)
        self._mailbox(self.rank, to).put(item)

    def _get(self, sender: int) -> Any:
        self.peers.add(sender)
        return self._mailbox(sender, self.rank).get(timeout=60)

    def all_gather_counts(self, *local: int, device: torch.device) -> list[list[int]]:
        """Return the counts of all ranks."""
        mine = torch.tensor([local], device=device)
        return self.all_gather_rows(mine, [1] * self.world_size).tolist()

    def start_all_gather_rows(self, rows: Tensor, counts: list[int]) -> Callable[[], Tensor]:
        """Send the rows to every other rank."""
        del counts
        for rank in range(self.world_size):
            self._send_tensor(rows, rank)
        return lambda: torch.cat([self._get(rank) for rank in range(self.world_size)])

    def all_reduce_sum(self, value: Tensor) -> Tensor:
        """Return the sum over the ranks."""
        return self.all_gather_rows(value[None], [1] * self.world_size).sum(0)

    def start_all_to_all_rows(self, rows: Tensor, sent: list[int], received: list[int]) -> Callable[[], Tensor]:
        """Send to each rank its rows."""
        ends = np.cumsum([0, *sent])
        for rank, (first, last) in enumerate(pairwise(ends)):
            self._send_tensor(rows[first:last], rank)

        def wait() -> Tensor:
            parts = [self._get(rank) for rank in range(self.world_size)]
            assert [len(part) for part in parts] == received
            return torch.cat(parts)

        return wait

    def start_send_receive(self, tensor: Tensor, to: int, into: Tensor, sender: int) -> Callable[[], Tensor]:
        """Send a tensor, and return what is received in place of it."""
        self._send_tensor(tensor, to)
        return lambda: into.copy_(self._get(sender))

    def _send_tensor(self, tensor: Tensor, to: int) -> None:
        if to == self.rank:
            self._mailbox(to, to).put(tensor)
        else:
            self._put(tensor, to, tensor.numel() * tensor.element_size())

    def _mailbox(self, sender: int, receiver: int) -> "queue.SimpleQueue[Any]":
        return self.mailboxes.setdefault((sender, receiver), queue.SimpleQueue())


def run_fake_ranks(
    world_size: int, work: Callable[[FakeRanks], Any], *, node_size: int | None = None
) -> list[tuple[FakeRanks, Any]]:
    """Let every rank do its work; return each with its result or the exception that it raised, in rank order.

    Args:
        world_size: number of ranks.
        work: called with each rank in a thread of its own.
        node_size: ranks of a node, if they are to know their node.
    """
    ranks = _connected(world_size)
    if node_size:
        nodes = [node for _ in range(world_size // node_size) for node in _connected(node_size)]
        for rank, node in zip(ranks, nodes, strict=True):
            rank.node = node
    results: list[Any] = [None] * world_size

    def run(rank: FakeRanks) -> None:
        try:
            results[rank.rank] = work(rank)
        except Exception as error:
            results[rank.rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return list(zip(ranks, results, strict=True))


def _connected(world_size: int) -> list[FakeRanks]:
    mailboxes: dict[tuple[int, int], queue.SimpleQueue[Any]] = {}
    return [
        FakeRanks(rank, world_size, stages=tuple(reduction_groups(rank, world_size)), mailboxes=mailboxes)
        for rank in range(world_size)
    ]


@dataclass
class CountingRanks(Ranks):
    """One rank of many, alone in its process: collectives of tensors transfer nothing and are counted.

    Attributes:
        messages: messages that this rank sends, W - 1 of them for a collective of W ranks.
    """

    messages: int = 0

    def start_all_gather_rows(self, rows: Tensor, counts: list[int]) -> Callable[[], Tensor]:
        """Return rows of the shape of all ranks' together."""
        self._count(self.world_size - 1, (self.world_size - 1) * max(counts), rows)
        everyone = rows.new_empty((sum(counts), *rows.shape[1:]))
        return lambda: everyone

    def start_all_to_all_rows(self, rows: Tensor, sent: list[int], received: list[int]) -> Callable[[], Tensor]:
        """Return rows of the shape of the received ones."""
        others = [count for rank, count in enumerate(sent) if rank != self.rank]
        self._count(sum(count > 0 for count in others), sum(others), rows)
        incoming = rows.new_empty((sum(received), *rows.shape[1:]))
        return lambda: incoming

    def start_send_receive(self, tensor: Tensor, to: int, into: Tensor, sender: int) -> Callable[[], Tensor]:
        """Count the message; the sent tensor lives until it is waited for, as in a real transfer."""
        del to, sender
        self._count(1, len(tensor), tensor)
        sent = [tensor]

        def wait() -> Tensor:
            sent.clear()
            return into

        return wait

    def _count(self, messages: int, sent: int, rows: Tensor) -> None:
        self.messages += messages
        self.bytes_sent += sent * rows[:1].numel() * rows.element_size()
