"""Ranks that are threads of one process: they run the real exchanges and count messages, bytes and connections."""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bali_ds.distributed import Ranks


@dataclass
class FakeRanks(Ranks):
    """A rank whose exchanges of numbers and objects go through queues.

    Attributes:
        mailboxes: the queues of all ranks, by sender and receiver.
        messages: messages that this rank has sent.
        payload: bytes of the objects that it has sent or received; numbers count as 8.
        peers: the ranks that it has exchanged anything with, each a connection of its own.
    """

    mailboxes: dict[tuple[int, int], "queue.SimpleQueue[Any]"] = field(default_factory=dict)
    messages: int = 0
    payload: int = 0
    peers: set[int] = field(default_factory=set)

    def _exchange_number(self, value: int, distance: int) -> int:
        self._put(value, (self.rank + distance) % self.world_size, 8)
        received: int = self._get((self.rank - distance) % self.world_size)
        return received

    def _send_bytes(self, payload: bytes, to: int) -> None:
        self._put(payload, to, len(payload))

    def _receive_bytes(self, sender: int) -> bytes:
        payload: bytes = self._get(sender)
        self.payload += len(payload)
        return payload

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
    ranks = [FakeRanks(rank, world_size, mailboxes=mailboxes) for rank in range(world_size)]
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
