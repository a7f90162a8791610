"""Notices that a host is gone, and ends the ranks of the others with its name instead of leaving them to wait."""

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn

import torch.distributed as dist

from bali_ds.training.cluster import Cluster
from bali_ds.training.stopping import STOPPED

_GONE = "bali_ds/gone"


class HostWatch:
    """Each rank shows a sign of life at the store of rank 0, which looks at all of them.

    A connection to a host without power ends only when its own time is up, which may be hours; so each rank also
    watches how long rank 0 has not answered. Silence is counted in this process's own rounds, not by the clock: a
    machine that was suspended has not lost the others.
    """

    def __init__(self, cluster: Cluster, seconds: float) -> None:
        """Join the watch; every rank calls this.

        Args:
            cluster: the ranks.
            seconds: after which a silent rank counts as gone. The others end within half as much again.
        """
        self._cluster, self._seconds = cluster, seconds
        self._interval = min(5.0, seconds / 6)
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # a connection of its own: the process groups use the other while they are made
        self._store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=seconds))
        self._store.set(self._key(cluster.rank), "0")
        self._hosts = cluster.collect(socket.gethostname())
        self._unheard = 0
        self._ended = threading.Event()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch inside the block."""
        threads = [threading.Thread(target=work, daemon=True) for work in (self._show_life, self._listen)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._ended.set()
            for thread in threads:
                thread.join(2 * self._interval)

    def _show_life(self) -> None:
        seen: dict[int, tuple[bytes, int]] = {}
        beats = 0
        while not self._ended.wait(self._interval):
            beats += 1
            try:
                self._store.set(self._key(self._cluster.rank), str(beats))
                if self._cluster.first:
                    self._look_at_all(seen, beats)
                elif self._store.check([_GONE]):
                    self._leave(self._store.get(_GONE).decode())
            except (dist.DistError, RuntimeError):
                # rank 0 closes its store when it is done, and so is this rank then
                if not self._ended.wait(2 * self._interval):
                    self._leave(f"rank 0 on host {self._hosts[0]} has ended")
                return
            self._unheard = 0

    def _look_at_all(self, seen: dict[int, tuple[bytes, int]], beats: int) -> None:
        ranks = range(self._cluster.world_size)
        for rank, sign in zip(ranks, self._store.multi_get([self._key(rank) for rank in ranks]), strict=True):
            if rank not in seen or seen[rank][0] != sign:
                seen[rank] = (sign, beats)
        silent = [rank for rank in ranks if (beats - seen[rank][1]) * self._interval > self._seconds]
        if silent:
            hosts = ", ".join(dict.fromkeys(self._hosts[rank] for rank in silent))
            message = f"no sign of life from host {hosts} for {self._seconds:.0f} s (rank {silent[0]})"
            self._store.set(_GONE, message)
            time.sleep(2 * self._interval)
            self._leave(message)

    def _listen(self) -> None:
        while not self._ended.wait(self._interval):
            self._unheard += 1
            if self._unheard * self._interval > self._seconds + 2 * self._interval:
                self._leave(f"no sign of life from host {self._hosts[0]} for {self._seconds:.0f} s (rank 0)")

    def _leave(self, message: str) -> NoReturn:
        # the main thread may wait for the lost host for ever
        print(f"train: {message}; start the run again on hosts that work", file=sys.stderr, flush=True)
        os._exit(STOPPED)

    @staticmethod
    def _key(rank: int) -> str:
        return f"bali_ds/alive/{rank}"
