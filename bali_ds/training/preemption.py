"""Preemption handling: turn a reason to stop early into a checkpoint and a clean exit on all ranks.

Reasons are signals, a stop file, time limits, the death of the launcher, unusable data and failed loader workers.
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
from bali_ds.training.process_group import EXITING, RankError, all_gather_errors

logger = logging.getLogger(__name__)

# The ranks compare indices of this tuple: where they differ, the largest counts.
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
# After its launcher died, a rank that does not reach its next step boundary in this time exits without saving.
_ORPHAN_SECONDS = 120.0


class Stopped(RunEnded):
    """The run was interrupted; every rank raises this. If training had started, a checkpoint is saved."""

    status = STOPPED


class NoData(RunEnded):
    """A loader worker was killed, or the loader delivered nothing for as long as the recipe allows."""

    status = STOPPED


class PreemptionHandler:
    """Records reasons to stop; the ranks compare them at every step boundary.

    Signal handlers only record theirs. Creating the file `stop` in the run's directory is a reason, too.
    """

    def __init__(self, ranks: Ranks, stop_file: Path, settings: FaultToleranceConfig) -> None:
        self._ranks = ranks
        self._stop_file = stop_file
        self._settings = settings
        self._until = time.monotonic() + 60 * settings.max_minutes if settings.max_minutes else math.inf
        self._error: Exception | None = None
        self._code = 0
        self._reason = 0
        if ranks.is_first:
            stop_file.unlink(missing_ok=True)
        self._ended = threading.Event()

    def all_reduce_reason(self) -> str | None:
        """Return why to stop if any rank has a reason, else None; a collective call before every step.

        While a rank waits for its data in `next_batch`, the others repeat the comparison here.
        """
        while not self._reason and self._all_reduce_max(self._code) == _WAITING:
            pass
        return _REASONS[self._reason] or None

    def _all_reduce_max(self, own: int) -> int:
        """Return the largest code of any rank, on every rank; all of them stop for one above `_WAITING`."""
        if not self._code and self._ranks.is_first and self._stop_file.exists():
            self._record("the stop file")
        if time.monotonic() > self._until:
            self._record("max_minutes")
        code = self._ranks.all_reduce_max(max(own, self._code))
        if code > _WAITING:
            self._reason = code
        return code

    def next_batch(self, loader: Loader) -> Step | None:
        """Return this rank's next samples; None where they cannot be loaded, which is recorded as a reason to stop.

        Makes collective calls while the samples are late, so that signals and time limits of any rank end the wait.
        """
        until = time.monotonic() + 60 * self._settings.data_minutes
        while not loader.ready(_SECONDS_BETWEEN_COMPARISONS):
            if time.monotonic() > until:
                line = f"no samples for {self._settings.data_minutes:g} min from {loader.source}"
                self._record("a loader worker", NoData(line))
                return None
            if self._all_reduce_max(_WAITING) > _WAITING:
                return None
        try:
            return next(loader)
        except InputError as error:
            self._record("the data", error)
        except WorkerKilledError as error:
            self._record("a loader worker", NoData(str(error)))
        except WorkerFailedError as error:  # the worker has printed its traceback
            self._record("an error", RankFailed(str(error), FAILED))
        except Exception as error:
            traceback.print_exc()
            self._record("an error", error)
        return None

    def stop(self, reason: str, *, step: int, saved: bool) -> NoReturn:
        """End the run on every rank for the reason that `all_reduce_reason` returned; a collective call.

        Args:
            reason: the reason.
            step: the last step that was taken.
            saved: whether a checkpoint of that step exists.

        Raises:
            InputError: the data cannot be used.
            RankFailed: a loader failed.
            Stopped: anything else.
        """
        own = RankError.of(self._error, self._ranks.rank) if self._error else None
        errors = all_gather_errors(self._ranks, own)
        EXITING.set()
        when = f"after step {step}" if saved else "without a new checkpoint"
        resumes = f"the same command resumes from {'there' if saved else 'the newest one'}"
        if not errors:
            raise Stopped(f"stopped by {reason} {when}; {resumes}")
        line = f"{min(errors)}; stopped {when}; {resumes}"
        raise Stopped(line) if min(errors).status == STOPPED else min(errors).exception(line)

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Record signals and the death of the launcher inside the block, in place of ending the process."""
        signals = {signal.SIGTERM: "SIGTERM", signal.SIGUSR1: "SIGUSR1", signal.SIGINT: "SIGINT"}

        def handle(number: int, _: FrameType | None) -> None:
            self._record(signals[signal.Signals(number)])

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

    def _record(self, reason: str, error: Exception | None = None) -> None:
        self._code = max(self._code, _REASONS.index(reason))
        self._error = error or self._error

    def _watch_launcher(self, ancestors: list[int]) -> None:
        """Record the death of the launcher, which passes no signals on: its ranks would continue unnoticed."""
        while not self._ended.wait(0.5):
            if _ancestors()[: len(ancestors)] != ancestors:
                self._record("the launcher's end")
                if not self._ended.wait(_ORPHAN_SECONDS):
                    logger.error("the launcher is gone and no step ended within %.0f s", _ORPHAN_SECONDS)
                    os._exit(STOPPED)
                return


def _ancestors() -> list[int]:
    """Return parent and grandparent: DeepSpeed's launcher on this host and the command that started it."""
    try:
        parent = os.getppid()
        fields = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return [os.getppid()]
    return [parent, int(fields[1])]
