"""Checkpoints that are complete or absent."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import deepspeed

from bali_ds.config import Checkpoints as Settings
from bali_ds.errors import InputError
from bali_ds.files import read_json, sha256_file, sync, write_json
from bali_ds.stream.order import Position
from bali_ds.training.cluster import Cluster
from bali_ds.training.reshard import adopt, optimised_names

logger = logging.getLogger(__name__)

MARKER = "COMPLETE.json"
_LAYOUT = ("world size", "ZeRO stage")


@dataclass(frozen=True)
class Progress:
    """How far a run has come; with the recipe and the data it says everything that follows."""

    step: int
    position: Position


class Checkpoints:
    """The checkpoints of one run, `checkpoints/step-00000123/`, each with a marker that lists its files.

    A checkpoint is written beside, verified, marked and renamed; only then do older ones go.
    """

    def __init__(self, directory: Path, cluster: Cluster, settings: Settings, *, identity: dict[str, Any]) -> None:
        """Manage the checkpoints below `directory`.

        Args:
            directory: the run's `checkpoints` folder.
            cluster: the ranks, which save and load together.
            settings: what stays.
            identity: what a checkpoint was made with: fingerprint of the data, world size, ZeRO stage. With another
                world size or stage it is taken over, with other data refused.
        """
        self.directory = directory
        self.cluster = cluster
        self.settings = settings
        self.identity = identity
        self._failed_at: int | None = None
        self._saved: Progress | None = None

    def any(self) -> bool:
        """Return whether there is one to return to."""
        return bool(self.cluster.agree(bool(self._complete()) if self.cluster.first else None))

    def due(self, step: int) -> bool:
        """Return whether to save after `step`; a save that failed is tried again soon."""
        again = self._failed_at is not None and step >= self._failed_at + max(1, self.settings.every // 10)
        return again or step % self.settings.every == 0

    def save(self, engine: deepspeed.DeepSpeedEngine, progress: Progress) -> bool:
        """Write a checkpoint; every rank calls this after the same step.

        Returns:
            Whether it is there; otherwise a rank could not write, which is said in one line, and the older ones stay.
            Before the first step there is nothing to save.
        """
        if progress.step == 0 or progress == self._saved:
            return progress.step > 0
        name = f"step-{progress.step:08d}"
        writing = self.directory / ".writing"
        faults = _Faults(engine)
        if self.cluster.first:
            with faults.noted():
                shutil.rmtree(writing, ignore_errors=True)
                (writing / name).mkdir(parents=True)
        self.cluster.wait()
        client_state = {"bali_ds": {**asdict(progress), "optimised": optimised_names(engine)}}
        with faults.noted_by_engine():
            engine.save_checkpoint(str(writing), tag=name, client_state=client_state, save_latest=False)
        self.cluster.wait()
        listed: dict[str, dict[str, Any]] = {}
        with faults.noted():
            listed = _described(self._share(sorted((writing / name).iterdir())))
        whole = [fault for fault in self.cluster.collect(faults.first) if fault]
        everything = {file: facts for share in self.cluster.collect(listed) for file, facts in share.items()}
        if self.cluster.first:
            with faults.noted():
                if not whole:
                    marker = {"progress": asdict(progress), "identity": self.identity, "files": everything}
                    write_json(writing / name / MARKER, marker)
                    self._publish(writing / name)
            shutil.rmtree(writing, ignore_errors=True)
        fault = self.cluster.agree(whole[0] if whole else faults.first)
        self._failed_at, self._saved = (progress.step, None) if fault else (None, progress)
        if fault:
            self.warn(f"no checkpoint of step {progress.step}: {fault}; the older ones stay, the next steps try again")
        return not fault

    def _share(self, files: list[Path]) -> list[Path]:
        return files[self.cluster.rank :: self.cluster.world_size]

    def _publish(self, written: Path) -> None:
        target = self.directory / written.name
        if target.exists():
            os.rename(target, written.parent / "replaced")
        os.rename(written, target)
        sync(self.directory)
        every = self.settings.keep_every
        for old in self._complete()[self.settings.keep :]:
            if not every or _step(old) % every:
                shutil.rmtree(old)

    def restore(self, engine: deepspeed.DeepSpeedEngine) -> Progress | None:
        """Load the newest sound checkpoint into the engine; None where the run has none.

        One of another world size or ZeRO stage is taken over: the same samples follow.

        Raises:
            InputError: the checkpoint belongs to other data, or all that there are are damaged.
        """
        found = self.cluster.agree([str(path) for path in self._complete()] if self.cluster.first else None)
        sound = next((path for path in map(Path, found) if not self._damaged(path)), None)
        if sound is None:
            if self.cluster.agree(any(self.directory.glob("step-*"))):
                raise InputError(
                    f"{self.directory}: none of its checkpoints is sound; restore one, or start afresh with "
                    "--resume never"
                )
            return None
        marker = read_json(sound / MARKER)
        made_with = marker["identity"]
        if made_with.get("data") != self.identity["data"]:
            raise InputError(
                f"{sound}: was saved with data {made_with.get('data')}, this run has {self.identity['data']}; "
                "resume with the same data or start another run"
            )
        progress = Progress(marker["progress"]["step"], Position(**marker["progress"]["position"]))
        if any(made_with.get(key) != self.identity[key] for key in _LAYOUT):
            before, now = (
                ", ".join(f"{key} {each.get(key)}" for key in _LAYOUT) for each in (made_with, self.identity)
            )
            logger.info("%s: was saved with %s; goes on with %s", sound, before, now)
        adopt(engine, sound)
        engine.global_steps = progress.step
        return progress

    def _damaged(self, path: Path) -> bool:
        """Compare hashes, shared out over the ranks."""
        marked = read_json(path / MARKER)["files"]
        own = {file.name: marked[file.name] for file in self._share(sorted(path / name for name in marked))}
        fault = next(
            (f"{name} is damaged" for name, facts in own.items() if _hash(path / name) != facts["sha256"]), None
        )
        faults = [fault for fault in self.cluster.collect(fault) if fault]
        if faults:
            self.warn(f"{path}: not used, {faults[0]}")
        return bool(faults)

    def _complete(self) -> list[Path]:
        return complete_checkpoints(self.directory, self.warn)

    def warn(self, line: str) -> None:
        """Say something that a person should read."""
        if self.cluster.first:
            logger.warning(line)


class _Faults:
    """Keeps the first failure to write; a rank that raised in a save would leave the others waiting for it."""

    def __init__(self, engine: deepspeed.DeepSpeedEngine) -> None:
        self.first: str | None = None
        self._engine = engine

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Keep a failure of the block."""
        try:
            yield
        except (OSError, RuntimeError, InputError) as error:
            self.first = self.first or str(error).strip().splitlines()[0]

    @contextmanager
    def noted_by_engine(self) -> Iterator[None]:
        """Keep failures of the files that DeepSpeed writes inside the block, and go through with the save."""
        # it also copies scripts to consolidate the weights, which `bali-ds export` does
        self._engine._copy_recovery_script = lambda _path: None
        writer = self._engine.checkpoint_engine
        write = writer.save

        def save(*arguments: Any, **options: Any) -> None:
            with self.noted():
                write(*arguments, **options)

        writer.save = save
        try:
            yield
        finally:
            writer.save = write


def complete_checkpoints(directory: Path, warn: Callable[[str], None] = logger.warning) -> list[Path]:
    """Return the checkpoints whose files are all there in their full size, newest first; name the others in the log."""
    complete = []
    for path in sorted(directory.glob("step-*"), reverse=True):
        if fault := _fault(path):
            warn(f"{path}: not used, {fault}")
        else:
            complete.append(path)
    return complete


def _fault(path: Path) -> str | None:
    try:
        files = read_json(path / MARKER)["files"]
        for name, facts in files.items():
            file = path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != facts["bytes"]:
                return f"{name} has {file.stat().st_size} bytes, not {facts['bytes']}"
    except (InputError, KeyError, TypeError, AttributeError):
        return f"{MARKER} is missing or damaged"
    return None


def _described(files: list[Path]) -> dict[str, dict[str, Any]]:
    for file in files:
        sync(file)
    return {file.name: {"bytes": file.stat().st_size, "sha256": sha256_file(file)} for file in files}


def _hash(file: Path) -> str | None:
    try:
        return sha256_file(file)
    except OSError:
        return None


def _step(path: Path) -> int:
    return int(path.name.partition("-")[2])
