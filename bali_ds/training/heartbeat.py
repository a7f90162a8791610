"""Heartbeat of the ranks, which detects lost hosts and passes on errors; and the watchdog of slow steps."""

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
from bali_ds.errors import STOPPED, system_error
from bali_ds.terminal import message
from bali_ds.training.process_group import EXITING, RankError, lost_rank

logger = logging.getLogger(__name__)

_ERROR = "bali_ds/error"
_RESTART = "start the run again on hosts that work"


class Heartbeat:
    """Each rank updates a counter in the store of rank 0, which checks the counters of all.

    A connection to a host without power ends only after its own timeout, which may be hours. So each rank also
    measures how long rank 0 has not answered. Silence is counted in rounds of this process, not by the clock: a
    machine that was suspended has not lost the others.

    A rank that an error ends posts it in the store first. The others would wait for it in a collective call, on some
    networks forever: they read the post and exit with its status.
    """

    def __init__(self, ranks: Ranks, seconds: float) -> None:
        """Connect to the store of rank 0; every rank calls this.

        Args:
            ranks: the ranks of the run.
            seconds: after which a silent rank counts as lost. The others end within half of that time more.
        """
        self._ranks, self._seconds = ranks, seconds
        self._interval = min(5.0, seconds / 6)
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # a second connection, since the process groups use the first one while they are created
        self._store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=seconds))
        self._store.set(self._key(ranks.rank), "0")
        host = socket.gethostname()
        self._first_host = ranks.broadcast_object(host)
        self._hosts = ranks.gather_object(host) or []  # of all ranks, on rank 0
        self._unheard = 0
        self._posted: RankError | None = None
        self._ended = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the heartbeat inside the block.

        Raises:
            RunEnded, InputError: the error that another rank posted first, in place of the block's own error if that
                is a consequence.
        """
        threads = [threading.Thread(target=work, daemon=True) for work in (self._beat, self._watch_rank_0)]
        for thread in threads:
            thread.start()
        try:
            yield
        except Exception as error:
            EXITING.set()
            self._ended.set()
            cause = self._exchange(error)
            if cause is error:
                raise
            raise cause from error
        finally:
            self._ended.set()
            for thread in threads:
                thread.join(2 * self._interval)

    def _exchange(self, error: Exception) -> Exception:
        """Post an error unless another rank was first; return the error that this rank exits with."""
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
        """Keep the store, which lives in rank 0, until all other ranks have read the post, or are gone."""
        until = time.monotonic() + 1.5 * self._interval
        keys = [self._key(rank, "read") for rank in range(self._ranks.world_size)]
        while not self._store.check(keys) and time.monotonic() < until:
            time.sleep(0.05)

    def _beat(self) -> None:
        seen: dict[int, tuple[bytes, int]] = {}
        beats = 0
        while not self._ended.wait(self._interval):
            beats += 1
            try:
                self._store.set(self._key(self._ranks.rank), str(beats))
                if self._ranks.is_first:
                    self._check_all(seen, beats)
                if self._store.check([_ERROR]):
                    self._posted = RankError(*json.loads(self._store.get(_ERROR)))
                    self._acknowledge()
            except (dist.DistError, RuntimeError):
                # rank 0 closes its store at its regular end, when this rank ends too
                if not self._ended.wait(2 * self._interval):
                    self._exit(f"rank 0 on host {self._first_host} has ended")
                return
            self._unheard = 0
            if self._posted and not EXITING.is_set():
                # give the main thread time to exit by itself, if it does not hang
                if not self._ended.wait(self._interval):
                    self._exit_with(self._posted)
                return

    def _check_all(self, seen: dict[int, tuple[bytes, int]], beats: int) -> None:
        numbers = range(self._ranks.world_size)
        for rank, counter in zip(numbers, self._store.multi_get([self._key(rank) for rank in numbers]), strict=True):
            if rank not in seen or seen[rank][0] != counter:
                seen[rank] = (counter, beats)
        silent = [rank for rank in numbers if (beats - seen[rank][1]) * self._interval > self._seconds]
        if silent:
            hosts = ", ".join(dict.fromkeys(self._hosts[rank] for rank in silent))
            line = f"no sign of life from host {hosts} for {self._seconds:.0f} s (rank {silent[0]}); {_RESTART}"
            self._post(RankError(STOPPED, self._ranks.rank, self._first_host, line))

    def _watch_rank_0(self) -> None:
        while not self._ended.wait(self._interval):
            self._unheard += 1
            if self._unheard * self._interval > self._seconds + 2 * self._interval:
                self._exit(
                    f"no sign of life from host {self._first_host} for {self._seconds:.0f} s (rank 0); {_RESTART}"
                )

    def _exit_with(self, posted: RankError) -> NoReturn:
        """End the process with the error of another rank, since the main thread waits for that rank."""
        if self._ranks.is_first:
            print(f"train: {message(posted)}", file=sys.stderr, flush=True)
            self._wait_for_others()
        os._exit(posted.status)

    def _exit(self, line: str) -> NoReturn:
        # the main thread may wait for the lost host forever
        print(f"train: {line}", file=sys.stderr, flush=True)
        os._exit(STOPPED)

    @staticmethod
    def _key(rank: int, what: str = "alive") -> str:
        return f"bali_ds/{what}/{rank}"


class Watchdog:
    """Writes the stacks of this rank's threads once for each step that exceeds its time limit.

    Ranks go through a step together, so if one hangs, all write theirs, and the one that differs is the cause.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        """Watch this rank.

        Args:
            path: file that stacks are appended to.
            seconds: the time limit of a step with its data, validation and checkpoint.
        """
        self._path, self._seconds = path, seconds
        self._step, self._begin = 0, time.monotonic()
        self._ended = threading.Event()

    def start_step(self, step: int) -> None:
        """Restart the clock."""
        self._step, self._begin = step, time.monotonic()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the watchdog inside the block."""
        self.start_step(self._step)
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
            if self._begin != written and time.monotonic() - self._begin > self._seconds:
                written = self._begin
                self._write()

    def _write(self) -> None:
        where = f"stacks in {self._path}"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as stream:
                stream.write(f"{time.ctime()}, process {os.getpid()}, step {self._step}\n")
                stream.flush()
                faulthandler.dump_traceback(stream)
        except OSError as error:
            where = f"{self._path}: cannot be written: {system_error(error)}"
        logger.warning("step %d takes longer than %.0f s; %s", self._step, self._seconds, where)
