"""Leaving early without losing anything: signals, a stop file, a dead launcher, bad data; all ranks agree on it."""

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from bali_ds.errors import InputError
from bali_ds.stream.loader import Step
from bali_ds.training.cluster import Cluster

logger = logging.getLogger(__name__)

STOPPED = 75
"""Exit status of a run that saved itself and wants to go on later (EX_TEMPFAIL)."""

_REASONS = (
    "",
    "SIGTERM",
    "SIGUSR1",
    "SIGINT",
    "the stop file",
    "the launcher's end",
    "max_minutes",
    "a loader worker",
    "the data",
)
# A rank that cannot reach its next step boundary in this time after its launcher died will never be waited for.
_ORPHAN_SECONDS = 120.0


class Stopped(Exception):  # noqa: N818 it is no error
    """The run was asked to stop and has saved a checkpoint."""


class StopRequest:
    """Collects reasons to stop; the ranks compare them at every step boundary.

    Handlers only take note. Touching `stop` in the run's directory stops it too.
    """

    def __init__(self, cluster: Cluster, stop_file: Path, max_minutes: float | None = None) -> None:
        self._cluster = cluster
        self._stop_file = stop_file
        self._until = time.monotonic() + 60 * max_minutes if max_minutes else math.inf
        self._error: Exception | None = None
        self._code = 0
        if cluster.first:
            stop_file.unlink(missing_ok=True)
        self._ended = threading.Event()

    def agreed(self) -> str | None:
        """Return why to stop if any rank has a reason, else None; every rank calls this before every step."""
        if not self._code and self._cluster.first and self._stop_file.exists():
            self._note("the stop file")
        if time.monotonic() > self._until:
            self._note("max_minutes")
        return _REASONS[self._cluster.largest(self._code)] or None

    def next_of(self, batches: Iterator[Step]) -> Step | None:
        """Return this rank's next samples; None, and a reason to stop, where they cannot be had."""
        try:
            return next(batches)
        except InputError as error:
            self._error = error
            self._note("the data")
        except RuntimeError as error:
            self._error = error
            self._note("a loader worker")
        return None

    def leave(self, reason: str, *, step: int, saved: bool) -> NoReturn:
        """End the run for the agreed reason.

        Raises:
            InputError: the data cannot be used.
            Stopped: anything else.
        """
        left = f"after step {step}" if saved else "without a new checkpoint"
        for rank, error in enumerate(self._cluster.collect(str(self._error) if self._error else None)):
            if error and reason == "the data":
                raise InputError(f"{error} (rank {rank}; stopped {left}, the same command goes on from there)")
            if error:
                reason = f"{error} on rank {rank}"
        raise Stopped(f"stopped by {reason} {left}; the same command goes on from there")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take note of signals and of the launcher's end inside the block."""
        signals = {signal.SIGTERM: "SIGTERM", signal.SIGUSR1: "SIGUSR1", signal.SIGINT: "SIGINT"}

        def handle(number: int, _: FrameType | None) -> None:
            self._note(signals[signal.Signals(number)])

        before = {number: signal.signal(number, handle) for number in signals}
        watcher = threading.Thread(target=self._watch_launcher, args=(_ancestors(),), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            self._ended.set()
            watcher.join()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, reason: str) -> None:
        self._code = max(self._code, _REASONS.index(reason))

    def _watch_launcher(self, ancestors: list[int]) -> None:
        """The launcher does not pass signals on: when it is killed its ranks would run on unseen."""
        while not self._ended.wait(0.5):
            if _ancestors()[: len(ancestors)] != ancestors:
                self._note("the launcher's end")
                if not self._ended.wait(_ORPHAN_SECONDS):
                    logger.error("the launcher is gone and no step ended within %.0f s", _ORPHAN_SECONDS)
                    os._exit(STOPPED)
                return


def _ancestors() -> list[int]:
    """Parent and grandparent: DeepSpeed's per-host launcher and the command that started it."""
    try:
        parent = os.getppid()
        fields = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return [os.getppid()]
    return [parent, int(fields[1])]
