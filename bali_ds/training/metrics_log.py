"""The log of metrics in a run directory: metrics.jsonl and TensorBoard."""

import errno
import json
import logging
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from bali_ds.errors import InputError, first_line, system_error
from bali_ds.files import nonempty_lines, published_file
from bali_ds.parsing import parse_json

logger = logging.getLogger(__name__)


class MetricsLog:
    """Appends metrics to metrics.jsonl and TensorBoard.

    A disk that is full does not end the run: the metrics are dropped, with one warning for each of the two, until they
    can be written again. A line is written as a whole or not at all.
    """

    def __init__(self, run: Path, first_step: int) -> None:
        """Open the log of a run; lines after `first_step` are dropped, since these steps are repeated.

        Raises:
            InputError: it cannot be written.
        """
        self._path, self._board_path = run / "metrics.jsonl", run / "tensorboard"
        _drop_lines(self._path, first_step)
        self._warned: set[Path] = set()
        try:
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 (`close` closes it)
            self._board = SummaryWriter(str(self._board_path), purge_step=first_step)
        except OSError as error:
            raise InputError(f"{error.filename or run}: cannot be written: {system_error(error)}") from error

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append the values of a step."""
        try:
            self._append(json.dumps({"step": step, **values}).encode() + b"\n")
        except OSError as error:
            self._warn(self._path, error)
        try:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        except Exception as error:  # also one that its thread met before
            self._warn(self._board_path, error)

    def _append(self, line: bytes) -> None:
        size = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file.fileno(), size)
            raise

    def _warn(self, path: Path, error: Exception) -> None:
        if path not in self._warned:
            self._warned.add(path)
            reason = system_error(error) or first_line(error)
            logger.warning("%s: metrics are dropped while it cannot be written: %s", path, reason)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        try:
            self._board.close()
        except Exception as error:
            self._warn(self._board_path, error)


def _drop_lines(path: Path, first_step: int) -> None:
    """Write metrics.jsonl again without the lines of steps that will be repeated."""
    kept = [line for line in _lines(path) if _step(line, str(path)) <= first_step]
    with published_file(path, "w") as stream:
        stream.writelines(line + "\n" for line in kept)


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
