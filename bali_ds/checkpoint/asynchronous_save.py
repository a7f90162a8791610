"""Asynchronous save: this rank's files of one checkpoint, written at once and flushed to disk by a thread."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deepspeed

from bali_ds.errors import InputError, first_line
from bali_ds.files import sha256_file, sync
from bali_ds.library_internals import checkpoint_files


class AsynchronousSave:
    """This rank's part in saving one checkpoint.

    The files are handed to the operating system before the next step changes the tensors. A thread then syncs them to
    disk and hashes them while training continues. DeepSpeed's own asynchronous writer is not used: failures in
    its process are not reported, and its format can be read by pickle alone.

    Attributes:
        directory: of the checkpoint.
        fault: the first failure, in one line. It is kept, since a rank that raised during a save would leave the others
            waiting for it.
        files: bytes and sha256 of this rank's files by name, once they are on disk.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.fault: str | None = None
        self.files: dict[str, dict[str, Any]] = {}
        self._written: list[Path] = []
        self._thread = threading.Thread(target=self._flush, daemon=True)

    @contextmanager
    def recorded_fault(self) -> Iterator[None]:
        """Keep a failure of the block as `fault` in place of raising it."""
        try:
            yield
        except (OSError, RuntimeError, InputError) as error:
            self.fault = self.fault or first_line(error)

    def make_directory(self) -> None:
        """Remove what an earlier save left behind and make the directory; only rank 0 calls this."""
        with self.recorded_fault():
            shutil.rmtree(self.directory.parent, ignore_errors=True)
            self.directory.mkdir(parents=True)

    def write(self, engine: deepspeed.DeepSpeedEngine, client_state: dict[str, Any]) -> None:
        """Write DeepSpeed's files of this rank; every rank calls this."""
        contents, write = checkpoint_files(engine, self.directory, client_state)
        for path, state in contents.items():
            with self.recorded_fault():
                try:
                    write(state, str(path))
                except RuntimeError as error:
                    # torch's writer does not say why the system took only a part of the bytes
                    free = shutil.disk_usage(self.directory).free / 2**20
                    raise RuntimeError(
                        f"{path.name} cannot be written, its disk has {free:,.1f} MiB left: {first_line(error)}"
                    ) from error
                self._written.append(path)

    def start_flush(self) -> None:
        """Start to sync and hash the written files in the background."""
        self._thread.start()

    def _flush(self) -> None:
        with self.recorded_fault():
            for file in self._written:
                sync(file)
                self.files[file.name] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}

    @property
    def is_flushing(self) -> bool:
        """Whether the thread is still running."""
        return self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Return when the thread has ended, or after some seconds."""
        if self.is_flushing:
            self._thread.join(seconds)
