"""Preemption handling: turn what ends a run early into a checkpoint and a clean exit on all ranks.

That are signals, a stop file, time limits, the death of the launcher, unusable data and failed loader workers.
"""

import logging
import math
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from bali_ds.config.recipe import FaultToleranceConfig
from bali_ds.data.loader import Loader, Step, WorkerKilledError
from bali_ds.data.worker import WorkerFailedError
from bali_ds.distributed import Ranks
from bali_ds.errors import FAILED, STOPPED, InputError, RankFailed, RunEnded
from bali_ds.training.rank_errors import LEAVING, RankError, all_gather_errors

logger = logging.getLogger(__name__)

# What the ranks compare: where they differ, the last one counts.
_REASONS = (
    "",
    "a rank that waits for its data",
    "SIGTERM",
    "SIGUSR1",
    "SIGINT",
    "the stop file",
    "the launcher's end",
    "max_minutes",
    "a loader worker",
    "the data",
    "an error",
)
_WAITING = 1
_SECONDS_BETWEEN_COMPARISONS = 1.0
# A rank that cannot reach its next step boundary in this time after its launcher died will never be waited for.
_ORPHAN_SECONDS = 120.0


class Stopped(RunEnded):
    """The run was interrupted; every rank raises this. If it had begun to train, a checkpoint is saved."""

    status = STOPPED


class NoData(RunEnded):
    """A loader worker was killed, or the loader delivered nothing for as long as the recipe allows."""

    status = STOPPED


class StopRequest:
    """Collects reasons to stop; the ranks compare them at every step boundary.

    Handlers only take note. Touching `stop` in the run's directory stops it too.
    """

    def __init__(self, ranks: Ranks, stop_file: Path, settings: FaultToleranceConfig) -> None:
        self._ranks = ranks
        self._stop_file = stop_file
        self._settings = settings
        self._until = time.monotonic() + 60 * settings.max_minutes if settings.max_minutes else math.inf
        self._error: Exception | None = None
        self._code = 0
        self._agreed = 0
        if ranks.is_first:
            stop_file.unlink(missing_ok=True)
        self._ended = threading.Event()

    def agreed(self) -> str | None:
        """Return why to stop if any rank has a reason, else None; a collective call before every step.

        While a rank waits for its data, in `next_of`, the others compare reasons with it again and again in here.
        """
        while not self._agreed and self._all_reduce_max(self._code) == _WAITING:
            pass
        return _REASONS[self._agreed] or None

    def _all_reduce_max(self, own: int) -> int:
        """Return the highest code of any rank, on every rank; above `_WAITING` they stop for it."""
        if not self._code and self._ranks.is_first and self._stop_file.exists():
            self._note("the stop file")
        if time.monotonic() > self._until:
            self._note("max_minutes")
        code = self._ranks.all_reduce_max(max(own, self._code))
        if code > _WAITING:
            self._agreed = code
        return code

    def next_of(self, loader: Loader) -> Step | None:
        """Return this rank's next samples; None, and a reason to stop, where they cannot be had.

        Collective calls where the samples are late: signals and time limits of any rank end the wait.
        """
        until = time.monotonic() + 60 * self._settings.data_minutes
        while not loader.ready(_SECONDS_BETWEEN_COMPARISONS):
            if time.monotonic() > until:
                line = f"no samples for {self._settings.data_minutes:g} min from {loader.source}"
                self._note("a loader worker", NoData(line))
                return None
            if self._all_reduce_max(_WAITING) > _WAITING:
                return None
        try:
            return next(loader)
        except InputError as error:
            self._note("the data", error)
        except WorkerKilledError as error:
            self._note("a loader worker", NoData(str(error)))
        except WorkerFailedError as error:  # the worker has printed its traceback
            self._note("an error", RankFailed(str(error), FAILED))
        except Exception as error:
            traceback.print_exc()
            self._note("an error", error)
        return None

    def leave(self, reason: str, *, step: int, saved: bool) -> NoReturn:
        """End the run on every rank for the agreed reason; a collective call.

        Raises:
            InputError: the data cannot be used.
            RankFailed: a loader failed.
            Stopped: anything else.
        """
        own = RankError.of(self._error, self._ranks.rank) if self._error else None
        met = [error for error in all_gather_errors(self._ranks, own) if error]
        LEAVING.set()
        left = f"after step {step}" if saved else "without a new checkpoint"
        resumes = f"the same command resumes from {'there' if saved else 'the newest one'}"
        if not met:
            raise Stopped(f"stopped by {reason} {left}; {resumes}")
        line = f"{min(met)}; stopped {left}; {resumes}"
        raise Stopped(line) if min(met).status == STOPPED else min(met).exception(line)

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

    def _note(self, reason: str, error: Exception | None = None) -> None:
        self._code = max(self._code, _REASONS.index(reason))
        self._error = error or self._error

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
