"""Asynchronous save: this rank's files of one checkpoint, written at once and flushed to disk by a thread."""

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deepspeed

from bali_ds.errors import InputError, first_line
from bali_ds.files import sha256_file, sync
from bali_ds.library_internals import wrapped_checkpoint_writes


class AsynchronousSave:
    """This rank's part in saving one checkpoint.

    DeepSpeed hands its files to the operating system before the next step changes the tensors. A thread then syncs
    them to disk and hashes them while training continues. DeepSpeed's own asynchronous writer is not used: failures in
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
        """Let DeepSpeed write its files; every rank calls this."""
        with wrapped_checkpoint_writes(engine, self._recorded_write):
            parent, tag = str(self.directory.parent), self.directory.name
            engine.save_checkpoint(parent, tag=tag, client_state=client_state, save_latest=False)

    def _recorded_write(self, write: Callable[..., None]) -> Callable[..., None]:
        def save(state_dict: dict[str, Any], path: str) -> None:
            with self.recorded_fault():
                try:
                    write(state_dict, path)
                except RuntimeError as error:
                    # torch's writer does not say why the system took only a part of the bytes
                    free = shutil.disk_usage(self.directory).free / 2**20
                    raise RuntimeError(
                        f"{Path(path).name} cannot be written, its disk has {free:,.1f} MiB left: {first_line(error)}"
                    ) from error
                self._written.append(Path(path))

        return save

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

    def wait(self) -> None:
        """Return when the thread has ended."""
        if self.is_flushing:
            self._thread.join()
