"""Collective communication between the ranks of a job, under the names of torch.distributed.

Numbers and objects of the host travel in messages whose number grows with the logarithm of the number of ranks: numbers
through small groups, objects along trees. By itself gloo sends everything around a ring of all ranks.
"""

import hashlib
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

_MOST_IN_GROUP = 8


def reduction_groups(rank: int, world_size: int) -> list[list[int]]:
    """Return the groups of a rank whose all-reduces, one after the other, reduce over all ranks.

    They are the digits of the rank's number in a mixed radix of at most 8, the first among neighbors. A group of p
    ranks takes 2 (p - 1) messages, where one ring of all ranks takes 2 (W - 1). A prime factor above 8 is a group too.
    """
    sizes: list[int] = []
    for prime in _prime_factors(world_size):
        if sizes and sizes[-1] * prime <= _MOST_IN_GROUP:
            sizes[-1] *= prime
        else:
            sizes.append(prime)
    groups, stride = [], 1
    for size in sizes:
        first = rank - rank // stride % size * stride
        groups.append([first + number * stride for number in range(size)])
        stride *= size
    return groups


def _prime_factors(number: int) -> Iterator[int]:
    divisor = 2
    while number > 1:
        while number % divisor == 0:
            yield divisor
            number //= divisor
        divisor += 1


@dataclass
class Ranks:
    """A process group and this process's rank in it; a single rank if torch.distributed is not initialized.

    Attributes:
        rank: this process's rank in the group.
        world_size: number of ranks.
        group: the process group; None for the default one.
        device: the device of this process.
        host: a gloo group of the same ranks, whose calls do not wait for the device; None for the same group.
        stages: groups on the host as `reduction_groups` lists them, for reductions; empty if the host group reduces.
        node: the ranks of this rank's node, numbered from 0; None if that is unknown, or nodes are not alike.
        bytes_sent: bytes that the tensor collectives of this rank have sent, each counted as its ring algorithm sends.
    """

    rank: int
    world_size: int
    group: dist.ProcessGroup | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    host: dist.ProcessGroup | None = None
    stages: tuple[Any, ...] = ()
    node: "Ranks | None" = None
    bytes_sent: int = 0

    @classmethod
    def of(cls, group: dist.ProcessGroup | None) -> "Ranks":
        """Return the ranks of `group` (None: the default group, or this process alone)."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls(0, 1)
        return cls(dist.get_rank(group), dist.get_world_size(group), group)

    def with_node(self, name: str, device: torch.device) -> "Ranks":
        """Return these ranks with their `node`, whose group its members make; a collective call over the group.

        The ranks of a node must have made equally many process groups before: torch derives the name of a group that
        its members make from that number.

        Args:
            name: of this rank's node, for instance its host name.
            device: on which the group communicates.
        """
        digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7])
        size = ranks_per_node([only for (only,) in self.all_gather_counts(digest, device=device)])
        if size is None:
            return replace(self, node=None)
        number, group = self.rank % size, self.group
        if 1 < size < self.world_size:
            whole, first = self.group or dist.group.WORLD, self.rank - number
            assert whole is not None
            members = [dist.get_global_rank(whole, rank) for rank in range(first, first + size)]
            group = dist.new_group(members, use_local_synchronization=True)
        return replace(self, node=Ranks(number, size, group, node=Ranks(number, size, group)))

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the one that prints and writes shared files."""
        return self.rank == 0

    def broadcast_object(self, value: Any) -> Any:
        """Return rank 0's value on every rank, sent along a binomial tree."""
        for distance in reversed(list(self._distances())):
            if self.rank % (2 * distance) == distance:
                value = self._receive(self.rank - distance)
            elif self.rank % (2 * distance) == 0 and self.rank + distance < self.world_size:
                self._send(value, self.rank + distance)
        return value

    def gather_object(self, value: Any) -> list[Any] | None:
        """Return every rank's value, in rank order, on rank 0 and None elsewhere, along a binomial tree."""
        values = [value]
        for distance in self._distances():
            if self.rank & distance:
                self._send(values, self.rank - distance)
                return None
            if self.rank + distance < self.world_size:
                values += self._receive(self.rank + distance)
        return values

    def scatter_object(self, values: list[Any] | None) -> Any:
        """Return the value of this rank's number in rank 0's list, sent along a binomial tree."""
        for distance in reversed(list(self._distances())):
            if self.rank % (2 * distance) == distance:
                values = self._receive(self.rank - distance)
            elif self.rank % (2 * distance) == 0 and self.rank + distance < self.world_size:
                assert values is not None
                self._send(values[distance:], self.rank + distance)
                values = values[:distance]
        assert values is not None
        return values[0]

    def all_gather_object(self, value: Any) -> list[Any]:
        """Return every rank's value, in rank order, on every rank; its cost grows with the number of ranks."""
        everyone: list[Any] = self.broadcast_object(self.gather_object(value))
        return everyone

    def all_reduce_max(self, value: int) -> int:
        """Return the largest value of all ranks on every rank, without waiting for the device."""
        if self.world_size == 1:
            return value
        number = torch.tensor([value])
        for group in self.stages or (self._host,):
            self._all_reduce_max(number, group)
        return int(number)

    def _all_reduce_max(self, number: Tensor, group: dist.ProcessGroup | None) -> None:
        dist.all_reduce(number, op=dist.ReduceOp.MAX, group=group)

    def _distances(self) -> Iterator[int]:
        """Yield 1, 2, 4, ... below the number of ranks."""
        distance = 1
        while distance < self.world_size:
            yield distance
            distance *= 2

    def _send(self, value: Any, to: int) -> None:
        dist.send_object_list([value], group=self._host, group_dst=to)

    def _receive(self, sender: int) -> Any:
        box: list[Any] = [None]
        dist.recv_object_list(box, group=self._host, group_src=sender)
        return box[0]

    @property
    def _host(self) -> dist.ProcessGroup | None:
        return self.host or self.group

    def barrier(self) -> None:
        """Return when every rank has called this."""
        self.all_reduce_max(0)

    def all_gather_counts(self, *local: int, device: torch.device) -> list[list[int]]:
        """Return the row counts of every rank, [world_size][len(local)], in one collective call."""
        if self.world_size == 1:
            return [list(local)]
        mine = torch.tensor(local, dtype=torch.int64, device=device)
        everyone = torch.empty(self.world_size * len(local), dtype=torch.int64, device=device)
        self.bytes_sent += (self.world_size - 1) * mine.numel() * 8
        dist.all_gather_into_tensor(everyone, mine, group=self.group)
        return everyone.view(self.world_size, len(local)).tolist()

    def all_gather_rows(self, rows: Tensor, counts: list[int]) -> Tensor:
        """Return the rows of all ranks in rank order, [sum(counts), ...], without gradients.

        Args:
            rows: [counts[rank], ...] of this rank.
            counts: rows of each rank.
        """
        return self.start_all_gather_rows(rows, counts)()

    def start_all_gather_rows(self, rows: Tensor, counts: list[int]) -> Callable[[], Tensor]:
        """Start `all_gather_rows`; the returned function waits for it and returns its result."""
        if self.world_size == 1:
            return lambda: rows
        longest = max(counts)
        padded = rows
        if len(rows) < longest:
            padded = rows.new_zeros((longest, *rows.shape[1:]))
            padded[: len(rows)] = rows
        padded = padded.contiguous()
        everyone = rows.new_empty((self.world_size * longest, *rows.shape[1:]))
        work = None
        if longest:
            self.bytes_sent += (self.world_size - 1) * padded.numel() * padded.element_size()
            work = dist.all_gather_into_tensor(everyone, padded, group=self.group, async_op=True)

        def wait() -> Tensor:
            if work is not None:
                work.wait()
            if min(counts) == longest:
                return everyone
            # one selection instead of a slice for each rank
            places = np.flatnonzero(np.arange(longest) < np.array(counts)[:, None])
            return everyone.index_select(0, torch.from_numpy(places).to(rows.device, non_blocking=True))

        return wait

    def all_reduce_sum(self, value: Tensor) -> Tensor:
        """Return the sum of `value` over the ranks, without gradients."""
        if self.world_size > 1:
            value = value.clone()
            self.bytes_sent += 2 * (self.world_size - 1) * value.numel() * value.element_size() // self.world_size
            dist.all_reduce(value, group=self.group)
        return value

    def start_all_to_all_rows(self, rows: Tensor, sent: list[int], received: list[int]) -> Callable[[], Tensor]:
        """Start sending consecutive rows to each rank; the returned function waits for what all ranks sent here.

        Args:
            rows: [sum(sent), ...], in the order of the ranks that they go to.
            sent: rows for each rank.
            received: rows from each rank; they are returned in rank order, [sum(received), ...].
        """
        if self.world_size == 1:
            return lambda: rows
        rows = rows.contiguous()
        incoming = rows.new_empty((sum(received), *rows.shape[1:]))
        self.bytes_sent += (len(rows) - sent[self.rank]) * rows[:1].numel() * rows.element_size()
        work = dist.all_to_all_single(incoming, rows, received, sent, group=self.group, async_op=True)

        def wait() -> Tensor:
            work.wait()
            return incoming

        return wait

    def start_send_receive(self, tensor: Tensor, to: int, into: Tensor, sender: int) -> Callable[[], Tensor]:
        """Start sending `tensor` and receiving `into`; the returned function waits for both and returns `into`."""
        operations = []
        if tensor.numel():
            self.bytes_sent += tensor.numel() * tensor.element_size()
            operations.append(dist.P2POp(dist.isend, tensor.contiguous(), group=self.group, group_peer=to))
        if into.numel():
            operations.append(dist.P2POp(dist.irecv, into, group=self.group, group_peer=sender))
        pending = dist.batch_isend_irecv(operations) if operations else []

        def wait() -> Tensor:
            for work in pending:
                work.wait()
            operations.clear()  # they hold references to the sent tensor
            return into

        return wait


def ranks_per_node(names: Sequence[object]) -> int | None:
    """Return how many ranks every node has, or None if that differs or ranks are not numbered node by node.

    Args:
        names: the node of each rank.
    """
    size = len(names) // len(set(names))
    alike = size * len(set(names)) == len(names)
    return size if alike and all(name == names[rank - rank % size] for rank, name in enumerate(names)) else None


def machine_id() -> str:
    """Return an id of this machine since its boot; containers may share a host name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def all_ranks(device: torch.device) -> Ranks:
    """Return all ranks of the job with those of this rank's host as `node`; the first call is collective."""
    if not (dist.is_available() and dist.is_initialized()):
        return Ranks(0, 1, node=Ranks(0, 1))
    return _ranks_with_hosts(dist.group.WORLD, device)


@lru_cache(maxsize=1)  # a job has one default group and its ranks one device
def _ranks_with_hosts(_group: dist.ProcessGroup | None, device: torch.device) -> Ranks:
    return Ranks.of(None).with_node(machine_id(), device)
