"""train.log in a run directory: what rank 0 prints and logs, each line with its time."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO

from bali_ds.terminal import PrintableFormatter, copied_progress

NAME = "train.log"


class TrainLog(logging.Handler):
    """Log file of a run; lines before the run directory exists are kept until then.

    A line that cannot be written, on a full disk, is dropped: the run continues without it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(PrintableFormatter())
        self._waiting: list[str] | None = []
        self._stream: IO[str] | None = None

    def open_in(self, run: Path) -> None:
        """Append to the log of a run directory from now on."""
        waiting, self._waiting = self._waiting or [], None
        with suppress(OSError):
            self._stream = open(run / NAME, "a", buffering=1, encoding="utf-8", errors="replace")  # noqa: SIM115
            self._stream.writelines(waiting)

    def write(self, text: str) -> None:
        """Write each line of a text with the local time."""
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        lines = [f"{now}  {line}\n" for line in text.split("\n") if line.strip()]
        if self._waiting is not None:
            self._waiting += lines
        elif self._stream is not None:
            with suppress(OSError):
                self._stream.writelines(lines)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a log record."""
        try:
            self.write(self.format(record))
        except Exception:  # a malformed record of a library does not end the run
            self.handleError(record)

    @contextmanager
    def running(self) -> Iterator["TrainLog"]:
        """Record what is printed as progress and logged in the block."""
        root = logging.getLogger()
        root.addHandler(self)
        try:
            with copied_progress(self.write):
                yield self
        finally:
            root.removeHandler(self)
            if self._stream is not None:
                with suppress(OSError):
                    self._stream.close()
