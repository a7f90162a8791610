"""Checkpoints of a run: saved asynchronously, verified, published by a rename, so that each is complete or absent."""

import logging
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import deepspeed

from bali_ds.checkpoint.asynchronous_save import AsynchronousSave
from bali_ds.checkpoint.load_state import load_state, optimized_names
from bali_ds.checkpoint.marker import (
    REPLACED,
    Marker,
    checkpoint_step,
    complete_checkpoints,
    named_checkpoints,
    read_marker,
    step_name,
    write_marker,
)
from bali_ds.config import CheckpointConfig
from bali_ds.data.sampler import Position
from bali_ds.distributed import Ranks
from bali_ds.errors import NOT_SAVED, InputError, RunEnded
from bali_ds.files import sync
from bali_ds.terminal import print_progress

logger = logging.getLogger(__name__)

_LAYOUT = ("world size", "ZeRO stage")
_SECONDS_BETWEEN_COMPARISONS = 1.0


@dataclass(frozen=True)
class RunProgress:
    """How far a run has come. With recipe and data it determines everything that follows.

    Attributes:
        step: optimizer steps taken.
        position: position in the data after them.
    """

    step: int
    position: Position


class NotSaved(RunEnded):
    """The checkpoint of the last step could not be written; the run is not complete and nothing was exported."""

    status = NOT_SAVED


class CheckpointManager:
    """The checkpoints of one run, `checkpoints/step-00000123/`, each with a marker that lists its files.

    A checkpoint is written into a directory of its own, flushed and hashed while training continues, then marked and
    renamed at a step boundary. Only then are older ones removed.
    """

    def __init__(self, directory: Path, ranks: Ranks, settings: CheckpointConfig, *, identity: dict[str, Any]) -> None:
        """Manage the checkpoints in `directory`.

        Args:
            directory: the run's `checkpoints` directory.
            ranks: the ranks, which save and load together.
            settings: how often to save and what to keep.
            identity: what checkpoints are saved with: fingerprint of the data, world size, ZeRO stage. A checkpoint of
                another world size or stage is converted while loading; one of other data is refused.
        """
        self.directory = directory
        self._workspace = directory / ".writing"
        self.ranks = ranks
        self.settings = settings
        self.identity = identity
        self._failed: tuple[int, str] | None = None
        self._saved: RunProgress | None = None
        self._pending: tuple[RunProgress, AsynchronousSave] | None = None

    def any_complete(self) -> bool:
        """Return whether there is a complete checkpoint; every rank calls this."""
        self.finish()
        return bool(self.ranks.broadcast_object(bool(self._complete()) if self.ranks.is_first else None))

    def due(self, step: int) -> bool:
        """Return whether to save after `step`; a failed save is tried again after a tenth of the interval."""
        again = self._failed is not None and step >= self._failed[0] + max(1, self.settings.every // 10)
        return again or step % self.settings.every == 0

    def save(self, engine: deepspeed.DeepSpeedEngine, progress: RunProgress) -> None:
        """Start a checkpoint, which `publish_if_flushed` or `finish` publishes; every rank calls this after a step.

        Nothing is saved before the first step, and nothing twice.
        """
        self.finish()
        if progress.step == 0 or progress == self._saved:
            return
        save = AsynchronousSave(self._workspace / step_name(progress.step))
        if self.ranks.is_first:
            save.make_directory()
        save.fault = self.ranks.broadcast_object(save.fault)
        if not save.fault:
            save.write(engine, {"bali_ds": {**asdict(progress), "optimised": optimized_names(engine)}})
        self._pending = progress, save
        if self.ranks.all_reduce_max(save.fault is not None):
            self.finish()
        else:
            save.start_flush()

    def publish_if_flushed(self) -> None:
        """Publish the started checkpoint if every rank has flushed its files; every rank calls this before a step."""
        if self._pending and not self.ranks.all_reduce_max(int(self._pending[1].is_flushing)):
            self.finish()

    def finish(self) -> bool:
        """Publish the started checkpoint, waiting for its flush; every rank calls this.

        Returns:
            Whether the checkpoint that was requested last exists. Otherwise a rank could not write, `fault` is why, and
            the older checkpoints remain. A warning names step and fault, once per step and fault.
        """
        if self._pending:
            (progress, save), self._pending = self._pending, None
            # in short turns: a rank whose disk is fast does not wait for the others in one collective call
            while self.ranks.all_reduce_max(int(save.is_flushing)):
                save.wait(_SECONDS_BETWEEN_COMPARISONS)
            fault = self._finished(progress, save)
            before, self._failed = self._failed, (progress.step, fault) if fault else None
            self._saved = None if fault else progress
            if not fault and self.ranks.is_first:
                print_progress(f"step {progress.step}: checkpoint saved")
            if self._failed and self._failed != before:
                self.warn(f"no checkpoint of step {progress.step}: {fault}; the older ones remain")
        return self._saved is not None

    @property
    def fault(self) -> str | None:
        """Why the newest attempt to save failed; None if it did not."""
        return self._failed[1] if self._failed else None

    def _finished(self, progress: RunProgress, save: AsynchronousSave) -> str | None:
        """Mark and publish what all ranks have written; return the first failure of any, the same on every rank."""
        fault = None
        if of_ranks := self.ranks.gather_object((save.fault, save.files)):
            fault = next((fault for fault, _ in of_ranks if fault), None)
            with save.recorded_fault():
                if not fault:
                    files = {name: entry for _, own in of_ranks for name, entry in own.items()}
                    write_marker(save.directory, progress.step, progress.position, self.identity, files)
                    self._publish(save.directory)
            fault = fault or save.fault
            if not fault:
                try:
                    self._remove_old()
                except OSError as error:
                    self.warn(f"{self.directory}: an old checkpoint could not be removed: {error}")
            shutil.rmtree(self._workspace, ignore_errors=True)
        return self.ranks.broadcast_object(fault)

    def _publish(self, written: Path) -> None:
        """Rename a checkpoint to its place; at any moment the old or the new one of the same step has a valid name."""
        target = self.directory / written.name
        replaced = target.with_name(target.name + REPLACED)
        sync(written)
        if target.exists():
            if replaced.exists():
                self._remove(replaced)
            os.rename(target, replaced)
        os.rename(written, target)
        sync(self.directory)

    def _remove_old(self) -> None:
        """Remove the checkpoints that the settings do not keep."""
        complete = self._complete()
        steps = list(dict.fromkeys(map(checkpoint_step, complete)))
        every = self.settings.keep_every
        kept = {*steps[: self.settings.keep], *(step for step in steps if every and step % every == 0)}
        for step, path in named_checkpoints(self.directory, lambda _: None):
            superseded = path.suffix == REPLACED and path.with_suffix("") in complete
            if superseded or (path in complete and step not in kept):
                self._remove(path)

    def _remove(self, path: Path) -> None:
        # Renamed first: otherwise a kill during the removal would leave an incomplete checkpoint, warned of forever.
        os.rename(path, self._workspace / path.name)
        shutil.rmtree(self._workspace / path.name)

    def restore(self, engine: deepspeed.DeepSpeedEngine) -> RunProgress | None:
        """Load the newest intact checkpoint into the engine; every rank calls this.

        Returns:
            The progress at that checkpoint; None where the run has no checkpoint.

        Raises:
            InputError: the checkpoint belongs to other data, or every checkpoint is damaged.
        """
        self.finish()
        path, marker = self._newest_intact()
        if path is None or marker is None:
            if self.ranks.broadcast_object(any(self.directory.glob("step-*"))):
                raise InputError(
                    f"{self.directory}: all of its checkpoints are damaged; restore one, or start afresh with "
                    "--resume never"
                )
            return None
        saved_with = marker.identity
        if saved_with.get("data") != self.identity["data"]:
            raise InputError(
                f"{path}: was saved with data {saved_with.get('data')}, this run has {self.identity['data']}; "
                "resume with the same data or start another run"
            )
        progress = RunProgress(marker.progress.step, marker.position)
        if any(saved_with.get(key) != self.identity[key] for key in _LAYOUT):
            before, now = (
                ", ".join(f"{key} {each.get(key)}" for key in _LAYOUT) for each in (saved_with, self.identity)
            )
            logger.info("%s: was saved with %s; continuing with %s", path, before, now)
        load_state(engine, path)
        engine.global_steps = progress.step
        # Later checkpoints are gone from the disk or damaged, and may be saved again.
        self._saved = progress
        return progress

    def _newest_intact(self) -> tuple[Path | None, Marker | None]:
        """Return the newest checkpoint whose hashes match, with the part of its marker that this rank has checked."""
        candidates: list[Path] = []
        if self.ranks.is_first:
            # What a killed process was writing or removing takes space that this run may need.
            shutil.rmtree(self._workspace, ignore_errors=True)
            candidates = self._complete()
        for number in range(self.ranks.all_reduce_max(len(candidates))):
            parts = None
            if self.ranks.is_first:
                path = candidates[number]
                parts = [(path, part) for part in read_marker(path).parts(self.ranks.world_size)]
            path, marker = self.ranks.scatter_object(parts)
            if self._is_intact(path, marker):
                return path, marker
        return None, None

    def _is_intact(self, path: Path, marker: Marker) -> bool:
        """Compare the hashes of the files in this rank's part of a marker; every rank calls this."""
        fault = marker.fault(path, hashed=True)
        if not self.ranks.all_reduce_max(fault is not None):
            return True
        faults = self.ranks.gather_object(fault) or []
        self.warn(f"{path}: not used, {next(filter(None, faults), None)}")
        return False

    def _complete(self) -> list[Path]:
        return complete_checkpoints(self.directory, self.warn)

    def warn(self, line: str) -> None:
        """Log a warning on rank 0."""
        if self.ranks.is_first:
            logger.warning(line)
