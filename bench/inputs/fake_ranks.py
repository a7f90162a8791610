"""Ranks that are threads of one process, or alone in it: they run the real exchanges and count what they send."""

import pickle
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from bali_ds.distributed import Ranks, reduction_groups


@dataclass
class FakeRanks(Ranks):
    """A rank whose exchanges of numbers and objects go through queues.

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

    def _mailbox(self, sender: int, receiver: int) -> "queue.SimpleQueue[Any]":
        return self.mailboxes.setdefault((sender, receiver), queue.SimpleQueue())


def run_fake_ranks(world_size: int, work: Callable[[FakeRanks], Any]) -> list[tuple[FakeRanks, Any]]:
    """Let every rank do its work; return each with its result or the exception that it raised, in rank order."""
    mailboxes: dict[tuple[int, int], queue.SimpleQueue[Any]] = {}
    ranks = [
        FakeRanks(rank, world_size, stages=tuple(reduction_groups(rank, world_size)), mailboxes=mailboxes)
        for rank in range(world_size)
    ]
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


@dataclass
class CountingRanks(Ranks):
    """One rank of many, alone in its process: collectives of tensors transfer nothing and are counted.

    Attributes:
        messages: point-to-point messages that this rank sends in a ring or a direct exchange.
    """

    messages: int = 0

    def all_gather_rows(self, rows: Tensor, counts: list[int]) -> Tensor:
        """Return rows of the shape of all ranks' together."""
        self.messages += self.world_size - 1
        self.bytes_sent += (self.world_size - 1) * max(counts) * rows[:1].numel() * rows.element_size()
        return rows.new_empty((sum(counts), *rows.shape[1:]))

    def all_to_all(self, outgoing: list[Tensor | None], like: Tensor, senders: list[int]) -> list[Tensor]:
        """Return tensors of the shape of the received ones."""
        given = [tensor for tensor in outgoing if tensor is not None]
        self.messages += len(given)
        self.bytes_sent += sum(tensor.numel() * tensor.element_size() for tensor in given)
        return [like] * len(senders)

    def start_send_receive(self, tensor: Tensor, to: int, into: Tensor, sender: int) -> Callable[[], Tensor]:
        """Count the message; what is received is there at once."""
        del to, sender
        self.messages += 1
        self.bytes_sent += tensor.numel() * tensor.element_size()
        return lambda: into
