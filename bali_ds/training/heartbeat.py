"""Heartbeat of the ranks: names a host that is gone, and carries the error that ends one rank to all others."""

import faulthandler
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist

from bali_ds.distributed import Ranks
from bali_ds.errors import STOPPED
from bali_ds.training.joining import lost_rank
from bali_ds.training.rank_errors import LEAVING, RankError

_ERROR = "bali_ds/error"
_RESTART = "start the run again on hosts that work"


class HostWatch:
    """Each rank shows a sign of life at the store of rank 0, which looks at all of them.

    A connection to a host without power ends only when its own time is up, which may be hours; so each rank also
    watches how long rank 0 has not answered. Silence is counted in this process's own rounds, not by the clock: a
    machine that was suspended has not lost the others.

    A rank that an error ends posts it at the store first. The others would wait for it in a collective call, for
    ever on some networks: they read the post and leave with its exit status.
    """

    def __init__(self, ranks: Ranks, seconds: float) -> None:
        """Join the watch; every rank calls this.

        Args:
            ranks: of the run.
            seconds: after which a silent rank counts as gone. The others end within half as much again.
        """
        self._ranks, self._seconds = ranks, seconds
        self._interval = min(5.0, seconds / 6)
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # a connection of its own: the process groups use the other while they are made
        self._store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=seconds))
        self._store.set(self._key(ranks.rank), "0")
        self._hosts = ranks.all_gather_object(socket.gethostname())
        self._unheard = 0
        self._posted: RankError | None = None
        self._ended = threading.Event()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch inside the block.

        Raises:
            RunEnded, InputError: another rank left with this first, in place of the block's own error that came of it.
        """
        threads = [threading.Thread(target=work, daemon=True) for work in (self._show_life, self._listen)]
        for thread in threads:
            thread.start()
        try:
            yield
        except Exception as error:
            LEAVING.set()
            self._ended.set()
            ending = self._exchanged(error)
            if ending is error:
                raise
            raise ending from error
        finally:
            self._ended.set()
            for thread in threads:
                thread.join(2 * self._interval)

    def _exchanged(self, error: Exception) -> Exception:
        """Post an error unless another rank was first; return what this rank leaves with."""
        lost = lost_rank(error)
        error = lost or error
        own = RankError.of(error, self._ranks.rank)
        try:
            first = self._post(own)
            self._acknowledge()
            if self._ranks.is_first and not lost:
                self._wait_for_others()
        except (dist.DistError, RuntimeError):  # rank 0 is gone, and its store with it
            first = self._posted or own
        is_cause = first != own and (lost is not None or first.status != own.status)
        return first.exception() if is_cause else error

    def _post(self, error: RankError) -> RankError:
        """Post an error; return the one that was posted first."""
        return RankError(*json.loads(self._store.compare_set(_ERROR, "", json.dumps(error))))

    def _acknowledge(self) -> None:
        self._store.set(self._key(self._ranks.rank, "read"), "")

    def _wait_for_others(self) -> None:
        """Keep the store, which lives in rank 0, until all have read what is posted there, or are gone."""
        until = time.monotonic() + 1.5 * self._interval
        keys = [self._key(rank, "read") for rank in range(self._ranks.world_size)]
        while not self._store.check(keys) and time.monotonic() < until:
            time.sleep(0.05)

    def _show_life(self) -> None:
        seen: dict[int, tuple[bytes, int]] = {}
        beats = 0
        while not self._ended.wait(self._interval):
            beats += 1
            try:
                self._store.set(self._key(self._ranks.rank), str(beats))
                if self._ranks.is_first:
                    self._look_at_all(seen, beats)
                if self._store.check([_ERROR]):
                    self._posted = RankError(*json.loads(self._store.get(_ERROR)))
                    self._acknowledge()
            except (dist.DistError, RuntimeError):
                # rank 0 closes its store when it is done, and so is this rank then
                if not self._ended.wait(2 * self._interval):
                    self._leave(f"rank 0 on host {self._hosts[0]} has ended")
                return
            self._unheard = 0
            if self._posted and not LEAVING.is_set():
                # time for the main thread to leave by itself, if it does not hang
                if not self._ended.wait(self._interval):
                    self._follow(self._posted)
                return

    def _look_at_all(self, seen: dict[int, tuple[bytes, int]], beats: int) -> None:
        numbers = range(self._ranks.world_size)
        for rank, sign in zip(numbers, self._store.multi_get([self._key(rank) for rank in numbers]), strict=True):
            if rank not in seen or seen[rank][0] != sign:
                seen[rank] = (sign, beats)
        silent = [rank for rank in numbers if (beats - seen[rank][1]) * self._interval > self._seconds]
        if silent:
            hosts = ", ".join(dict.fromkeys(self._hosts[rank] for rank in silent))
            line = f"no sign of life from host {hosts} for {self._seconds:.0f} s (rank {silent[0]}); {_RESTART}"
            self._post(RankError(STOPPED, self._ranks.rank, self._hosts[0], line))

    def _listen(self) -> None:
        while not self._ended.wait(self._interval):
            self._unheard += 1
            if self._unheard * self._interval > self._seconds + 2 * self._interval:
                self._leave(
                    f"no sign of life from host {self._hosts[0]} for {self._seconds:.0f} s (rank 0); {_RESTART}"
                )

    def _follow(self, posted: RankError) -> NoReturn:
        """Leave with the error of another rank in place of the main thread, which waits for that rank."""
        if self._ranks.is_first:
            print(f"train: {posted}", file=sys.stderr, flush=True)
            self._wait_for_others()
        os._exit(posted.status)

    def _leave(self, line: str) -> NoReturn:
        # the main thread may wait for the lost host for ever
        print(f"train: {line}", file=sys.stderr, flush=True)
        os._exit(STOPPED)

    @staticmethod
    def _key(rank: int, what: str = "alive") -> str:
        return f"bali_ds/{what}/{rank}"


logger = logging.getLogger(__name__)


class Watchdog:
    """Writes the stacks of this rank's threads, once for each step that exceeds its time.

    Ranks go through a step together, so where one hangs all write theirs, and the odd one out is the culprit.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        """Watch over a rank.

        Args:
            path: where its stacks are appended.
            seconds: that a step may take, with its data, validation and checkpoint.
        """
        self._path, self._seconds = path, seconds
        self._step, self._begun = 0, time.monotonic()
        self._ended = threading.Event()

    def begins(self, step: int) -> None:
        """Take note that a step begins."""
        self._step, self._begun = step, time.monotonic()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch inside the block."""
        self.begins(self._step)
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _watch(self) -> None:
        written = 0.0
        while not self._ended.wait(min(1.0, self._seconds / 4)):
            if self._begun != written and time.monotonic() - self._begun > self._seconds:
                written = self._begun
                self._write()

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as stream:
            stream.write(f"{time.ctime()}, process {os.getpid()}, step {self._step}\n")
            stream.flush()
            faulthandler.dump_traceback(stream)
        logger.warning("step %d takes longer than %.0f s; stacks in %s", self._step, self._seconds, self._path)
