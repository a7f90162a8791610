"""Says where every rank hangs when a step takes too long."""

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
