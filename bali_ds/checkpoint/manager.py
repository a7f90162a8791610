"""Checkpoints that are complete or absent."""

import logging
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import deepspeed

from bali_ds.checkpoint.asynchronous_save import Writing
from bali_ds.checkpoint.load_state import adopt, optimized_names
from bali_ds.checkpoint.marker import (
    REPLACED,
    Marker,
    checkpoint_step,
    complete_checkpoints,
    named_checkpoints,
    read_marker,
    write_marker,
)
from bali_ds.config import CheckpointConfig
from bali_ds.data.sampler import Position
from bali_ds.distributed import Ranks
from bali_ds.errors import NOT_SAVED, InputError, RunEnded
from bali_ds.files import sync

logger = logging.getLogger(__name__)

_LAYOUT = ("world size", "ZeRO stage")


@dataclass(frozen=True)
class RunProgress:
    """How far a run has come; with the recipe and the data it says everything that follows."""

    step: int
    position: Position


class NotSaved(RunEnded):
    """The checkpoint of the last step could not be written; the run is not complete and nothing was exported."""

    status = NOT_SAVED


class CheckpointManager:
    """The checkpoints of one run, `checkpoints/step-00000123/`, each with a marker that lists its files.

    A checkpoint is written beside, brought to the disk and hashed while training goes on, marked and renamed at a step
    boundary; only then do older ones go.
    """

    def __init__(self, directory: Path, ranks: Ranks, settings: CheckpointConfig, *, identity: dict[str, Any]) -> None:
        """Manage the checkpoints below `directory`.

        Args:
            directory: the run's `checkpoints` folder.
            ranks: the ranks, which save and load together.
            settings: what stays.
            identity: what a checkpoint was made with: fingerprint of the data, world size, ZeRO stage. With another
                world size or stage it is taken over, with other data refused.
        """
        self.directory = directory
        self._scratch = directory / ".writing"
        self.ranks = ranks
        self.settings = settings
        self.identity = identity
        self._failed: tuple[int, str] | None = None
        self._saved: RunProgress | None = None
        self._begun: tuple[RunProgress, Writing] | None = None

    def any(self) -> bool:
        """Return whether there is one to return to."""
        self.finish()
        return bool(self.ranks.broadcast_object(bool(self._complete()) if self.ranks.is_first else None))

    def due(self, step: int) -> bool:
        """Return whether to save after `step`; a save that failed is tried again soon."""
        again = self._failed is not None and step >= self._failed[0] + max(1, self.settings.every // 10)
        return again or step % self.settings.every == 0

    def save(self, engine: deepspeed.DeepSpeedEngine, progress: RunProgress) -> None:
        """Begin a checkpoint; every rank calls this after the same step. Before the first step there is none.

        `advance` or `finish` publish it.
        """
        self.finish()
        if progress.step == 0 or progress == self._saved:
            return
        writing = Writing(self._scratch / f"step-{progress.step:08d}")
        if self.ranks.is_first:
            writing.make_room()
        writing.fault = self.ranks.broadcast_object(writing.fault)
        if not writing.fault:
            writing.write(engine, {"bali_ds": {**asdict(progress), "optimised": optimized_names(engine)}})
        self._begun = progress, writing
        if any(self.ranks.all_gather_object(writing.fault)):
            self.finish()
        else:
            writing.settle()

    def advance(self) -> None:
        """Publish what was begun if it has reached the disk on every rank; every rank calls this before every step."""
        if self._begun and not self.ranks.all_reduce_max(int(self._begun[1].settling)):
            self.finish()

    def finish(self) -> bool:
        """Publish what was begun; wait for it where need be. Every rank calls this.

        Returns:
            Whether the checkpoint that was asked for last is there; otherwise a rank could not write, `fault` is why,
            and the older ones stay. A warning names the step and the fault; it is not repeated for the same step.
        """
        if self._begun:
            (progress, writing), self._begun = self._begun, None
            writing.wait()
            fault = self._concluded(progress, writing)
            before, self._failed = self._failed, (progress.step, fault) if fault else None
            self._saved = None if fault else progress
            if self._failed and self._failed != before:
                self.warn(f"no checkpoint of step {progress.step}: {fault}; the older ones stay")
        return self._saved is not None

    @property
    def fault(self) -> str | None:
        """Why the newest attempt to save failed; None if it did not."""
        return self._failed[1] if self._failed else None

    def _concluded(self, progress: RunProgress, writing: Writing) -> str | None:
        """Mark and publish what all ranks have written; return the first failure of any, the same on every rank."""
        shares = self.ranks.all_gather_object((writing.fault, writing.files))
        fault = next((fault for fault, _ in shares if fault), None)
        if self.ranks.is_first:
            with writing.noted():
                if not fault:
                    files = {name: facts for _, share in shares for name, facts in share.items()}
                    write_marker(writing.directory, progress.step, progress.position, self.identity, files)
                    self._publish(writing.directory)
            fault = fault or writing.fault
            if not fault:
                try:
                    self._retire()
                except OSError as error:
                    self.warn(f"{self.directory}: a checkpoint that is not kept could not be removed: {error}")
            shutil.rmtree(self._scratch, ignore_errors=True)
        return self.ranks.broadcast_object(fault)

    def _publish(self, written: Path) -> None:
        """Give a checkpoint its name; at any moment the old or the new one of the same step has one that counts."""
        target = self.directory / written.name
        replaced = target.with_name(target.name + REPLACED)
        sync(written)
        if target.exists():
            if replaced.exists():
                self._remove(replaced)
            os.rename(target, replaced)
        os.rename(written, target)
        sync(self.directory)

    def _retire(self) -> None:
        """Remove the checkpoints that need not be kept any more."""
        complete = self._complete()
        steps = list(dict.fromkeys(map(checkpoint_step, complete)))
        every = self.settings.keep_every
        kept = {*steps[: self.settings.keep], *(step for step in steps if every and step % every == 0)}
        for step, path in named_checkpoints(self.directory, lambda _: None):
            superseded = path.suffix == REPLACED and path.with_suffix("") in complete
            if superseded or (path in complete and step not in kept):
                self._remove(path)

    def _remove(self, path: Path) -> None:
        # Renamed first: a checkpoint of which a killed process had removed some files would be warned of ever after.
        os.rename(path, self._scratch / path.name)
        shutil.rmtree(self._scratch / path.name)

    def restore(self, engine: deepspeed.DeepSpeedEngine) -> RunProgress | None:
        """Load the newest sound checkpoint into the engine; None where the run has none.

        One of another world size or ZeRO stage is taken over: the same samples follow.

        Raises:
            InputError: the checkpoint belongs to other data, or all that there are are damaged.
        """
        self.finish()
        found: list[tuple[Path, Marker]] = []
        if self.ranks.is_first:
            # What a killed process was writing or removing takes space that this run may need.
            shutil.rmtree(self._scratch, ignore_errors=True)
            found = [(path, read_marker(path)) for path in self._complete()]
        found = self.ranks.broadcast_object(found)
        sound, marker = next((each for each in found if not self._damaged(*each)), (None, None))
        if sound is None or marker is None:
            if self.ranks.broadcast_object(any(self.directory.glob("step-*"))):
                raise InputError(
                    f"{self.directory}: none of its checkpoints is sound; restore one, or start afresh with "
                    "--resume never"
                )
            return None
        made_with = marker.identity
        if made_with.get("data") != self.identity["data"]:
            raise InputError(
                f"{sound}: was saved with data {made_with.get('data')}, this run has {self.identity['data']}; "
                "resume with the same data or start another run"
            )
        progress = RunProgress(marker.progress.step, marker.position)
        if any(made_with.get(key) != self.identity[key] for key in _LAYOUT):
            before, now = (
                ", ".join(f"{key} {each.get(key)}" for key in _LAYOUT) for each in (made_with, self.identity)
            )
            logger.info("%s: was saved with %s; goes on with %s", sound, before, now)
        adopt(engine, sound)
        engine.global_steps = progress.step
        # What was saved after this checkpoint is not on the disk any more, or is damaged, and may be saved again.
        self._saved = progress
        return progress

    def _damaged(self, path: Path, marker: Marker) -> bool:
        """Compare hashes, shared out over the ranks."""
        own = sorted(marker.files.items())[self.ranks.rank :: self.ranks.world_size]
        fault = next((fault for name, file in own if (fault := file.fault(path / name, hashed=True))), None)
        faults = [fault for fault in self.ranks.all_gather_object(fault) if fault]
        if faults:
            self.warn(f"{path}: not used, {faults[0]}")
        return bool(faults)

    def _complete(self) -> list[Path]:
        return complete_checkpoints(self.directory, self.warn)

    def warn(self, line: str) -> None:
        """Say something that a person should read."""
        if self.ranks.is_first:
            logger.warning(line)
