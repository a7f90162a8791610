"""One checkpoint on its way to the disk: written while training stands still, settled while it goes on."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deepspeed

from bali_ds.errors import InputError
from bali_ds.files import sha256_file, sync


class Writing:
    """What this rank writes of a checkpoint.

    DeepSpeed hands its files to the operating system before the next step changes what they hold. That the bytes reach
    the disk, and their hashes, are the business of a thread. DeepSpeed's own asynchronous writer cannot stand in:
    what fails in its process is not reported, and it writes a format that only pickle reads.

    Attributes:
        directory: of the checkpoint.
        fault: the first failure, in one line. A rank that raised in a save would leave the others waiting for it.
        files: bytes and sha256 of this rank's files by name, once they are on the disk.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.fault: str | None = None
        self.files: dict[str, dict[str, Any]] = {}
        self._written: list[Path] = []
        self._thread = threading.Thread(target=self._settle, daemon=True)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Keep a failure of the block."""
        try:
            yield
        except (OSError, RuntimeError, InputError) as error:
            self.fault = self.fault or str(error).strip().splitlines()[0]

    def make_room(self) -> None:
        """Remove what an earlier save left and make the directory; the first rank alone calls this."""
        with self.noted():
            shutil.rmtree(self.directory.parent, ignore_errors=True)
            self.directory.mkdir(parents=True)

    def write(self, engine: deepspeed.DeepSpeedEngine, client_state: dict[str, Any]) -> None:
        """Have DeepSpeed write its files; every rank calls this."""
        # it also copies scripts to consolidate the weights, which `bali-ds export` does
        engine._copy_recovery_script = lambda _path: None
        writer = engine.checkpoint_engine
        write = writer.save

        def save(state_dict: dict[str, Any], path: str) -> None:
            with self.noted():
                write(state_dict, path)
                self._written.append(Path(path))

        writer.save = save
        try:
            name = self.directory.name
            engine.save_checkpoint(str(self.directory.parent), tag=name, client_state=client_state, save_latest=False)
        finally:
            writer.save = write

    def settle(self) -> None:
        """Begin to bring what was written to the disk."""
        self._thread.start()

    def _settle(self) -> None:
        with self.noted():
            for file in self._written:
                sync(file)
                self.files[file.name] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}

    @property
    def settling(self) -> bool:
        """Whether the thread is still at it."""
        return self._thread.is_alive()

    def wait(self) -> None:
        """Return when it is not."""
        if self.settling:
            self._thread.join()
