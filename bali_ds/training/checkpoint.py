"""Checkpoints that are complete or absent."""

import logging
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import deepspeed

from bali_ds.errors import InputError
from bali_ds.files import read_json, sha256_file, write_json
from bali_ds.stream.order import Position
from bali_ds.training.cluster import Cluster

logger = logging.getLogger(__name__)

MARKER = "COMPLETE.json"


@dataclass(frozen=True)
class Progress:
    """How far a run has come; with the recipe and the data it says everything that follows."""

    step: int
    position: Position


class Checkpoints:
    """The checkpoints of one run, `checkpoints/step-00000123/`, each with a marker that lists its files.

    A checkpoint is written beside, verified, marked and renamed; only then do older ones go.
    """

    def __init__(self, directory: Path, cluster: Cluster, *, keep: int, identity: dict[str, Any]) -> None:
        """Manage the checkpoints below `directory`.

        Args:
            directory: the run's `checkpoints` folder.
            cluster: the ranks, which save and load together.
            keep: how many of the newest stay.
            identity: what a checkpoint is only valid for: fingerprints, world size, ZeRO stage.
        """
        self.directory = directory
        self.cluster = cluster
        self.keep = keep
        self.identity = identity

    def save(self, engine: deepspeed.DeepSpeedEngine, progress: Progress) -> None:
        """Write a checkpoint; every rank calls this after the same step."""
        name = f"step-{progress.step:08d}"
        writing = self.directory / ".writing"
        if self.cluster.first:
            shutil.rmtree(writing, ignore_errors=True)
            writing.mkdir(parents=True)
        self.cluster.wait()
        engine.save_checkpoint(str(writing), tag=name, client_state={"bali_ds": asdict(progress)}, save_latest=False)
        self.cluster.wait()
        if self.cluster.first:
            self._publish(writing / name, progress)
            shutil.rmtree(writing)
        self.cluster.wait()

    def _publish(self, written: Path, progress: Progress) -> None:
        files = sorted(path for path in written.iterdir() if path.is_file())
        listed = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in files}
        write_json(written / MARKER, {"progress": asdict(progress), "identity": self.identity, "files": listed})
        target = self.directory / written.name
        if target.exists():
            shutil.rmtree(target)
        os.rename(written, target)
        for old in complete_checkpoints(self.directory)[self.keep :]:
            shutil.rmtree(old)

    def restore(self, engine: deepspeed.DeepSpeedEngine) -> Progress | None:
        """Load the newest complete checkpoint into the engine; None where there is none.

        Raises:
            InputError: the checkpoint belongs to other data, another world size or another ZeRO stage.
        """
        found = complete_checkpoints(self.directory)
        newest = self.cluster.agree(str(found[0]) if found else None)
        if newest is None:
            return None
        marker = read_json(Path(newest) / MARKER)
        for key, value in self.identity.items():
            if marker["identity"].get(key) != value:
                raise InputError(
                    f"{newest}: was saved with {key} {marker['identity'].get(key)}, this run has {value}; "
                    f"resume with the same {key} or start another run"
                )
        loaded, _ = engine.load_checkpoint(str(self.directory), tag=Path(newest).name)
        if loaded is None:
            raise InputError(f"{newest}: DeepSpeed could not load it; remove it to fall back to an older one")
        progress = marker["progress"]
        return Progress(progress["step"], Position(**progress["position"]))


def complete_checkpoints(directory: Path) -> list[Path]:
    """Return the checkpoints whose files are all there in their full size, newest first; name the others in the log."""
    complete = []
    for path in sorted(directory.glob("step-*"), reverse=True):
        if fault := _fault(path):
            logger.warning("%s: not used, %s", path, fault)
        else:
            complete.append(path)
    return complete


def _fault(path: Path) -> str | None:
    try:
        files = read_json(path / MARKER)["files"]
    except (InputError, KeyError, TypeError):
        return f"{MARKER} is missing or damaged"
    for name, facts in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != facts["bytes"]:
            return f"{name} has {file.stat().st_size} bytes, not {facts['bytes']}"
    return None
