"""The log of metrics in a run directory, metrics.jsonl, which the trackers of the run receive too."""

import errno
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path

from bali_ds.errors import InputError, first_line, system_error
from bali_ds.files import nonempty_lines, published_file
from bali_ds.parsing import parse_json
from bali_ds.training.trackers import Tracker

logger = logging.getLogger(__name__)


class MetricsLog:
    """Appends metrics to metrics.jsonl and hands them to trackers.

    Neither a full disk nor a server that does not answer ends the run: the metrics are dropped, with one warning for
    each of the places, until they can be written again. A line is written as a whole or not at all.
    """

    def __init__(self, run: Path, first_step: int, trackers: Mapping[str, Tracker]) -> None:
        """Open the log of a run; lines after `first_step` are dropped, since these steps are repeated.

        Args:
            run: the run directory.
            first_step: steps taken before.
            trackers: trackers by name; `close` closes them.

        Raises:
            InputError: it cannot be written.
        """
        self._path, self._trackers = run / "metrics.jsonl", trackers
        self._warned: set[str] = set()
        self._file = _opened(self._path, first_step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append the values of a step."""
        try:
            self._append(json.dumps({"step": step, **values}).encode() + b"\n")
        except OSError as error:
            self._warn(str(self._path), error)
        for name, tracker in self._trackers.items():
            try:
                tracker.log(step, values)
            except Exception as error:  # also one that a thread of the tracker met before
                self._warn(name, error)

    def rewind(self, step: int) -> None:
        """Drop the lines after a step, since these steps are repeated; the trackers stay open.

        Raises:
            InputError: the file cannot be written.
        """
        self._file.close()
        self._file = _opened(self._path, step)
        for name, tracker in self._trackers.items():
            try:
                tracker.rewind(step)
            except Exception as error:
                self._warn(name, error)

    def _append(self, line: bytes) -> None:
        size = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file.fileno(), size)
            raise

    def _warn(self, place: str, error: Exception) -> None:
        if place not in self._warned:
            self._warned.add(place)
            reason = system_error(error) or first_line(error)
            logger.warning("%s: metrics are dropped while it cannot be written: %s", place, reason)

    def close(self, *, complete: bool) -> None:
        """Close the file and the trackers; `complete` tells them whether the run took its last step."""
        self._file.close()
        for name, tracker in self._trackers.items():
            try:
                tracker.close(complete=complete)
            except Exception as error:
                self._warn(name, error)


def _opened(path: Path, first_step: int) -> FileIO:
    """Write metrics.jsonl again without the lines of steps that will be repeated, and open it to append more."""
    kept = [line for line in _lines(path) if _step(line, str(path)) <= first_step]
    with published_file(path, "w") as stream:
        stream.writelines(line + "\n" for line in kept)
    try:
        return open(path, "ab", buffering=0)
    except OSError as error:
        raise InputError(f"{error.filename or path}: cannot be written: {system_error(error)}") from error


def _lines(path: Path) -> Iterator[str]:
    return (line for _, line in nonempty_lines(path)) if path.exists() else iter(())


def _step(line: str, where: str) -> float:
    """Return the step of a line; infinity where it has none, as the incomplete last line of a killed run."""
    try:
        row = parse_json(line, where, non_finite=True)
    except InputError:
        return math.inf
    step = row.get("step") if isinstance(row, dict) else None
    return step if isinstance(step, int) else math.inf
