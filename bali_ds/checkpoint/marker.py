"""Names of checkpoints, and the marker file that makes a directory a complete checkpoint."""

import hashlib
import json
import logging
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bali_ds.data.sampler import Position
from bali_ds.errors import InputError, system_error
from bali_ds.files import read_json, sha256_file, write_json

logger = logging.getLogger(__name__)

MARKER = "COMPLETE.json"
REPLACED = ".replaced"
"""Suffix of a checkpoint that a new one of the same step is about to replace. Until then it is a valid checkpoint."""

_NAME = re.compile(rf"step-([0-9]{{8}}|[1-9][0-9]{{8,17}})({re.escape(REPLACED)})?")
_NAMING = "the name of a checkpoint is step- and at least eight digits"
_Count = Annotated[int, Field(ge=0, lt=2**63)]
_FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Position(_Strict):
    epoch: _Count
    samples_seen: _Count


class _Progress(_Strict):
    step: _Count
    position: _Position


class StoredFile(_Strict):
    """Size and hash of a file."""

    bytes: _Count
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    def fault(self, file: Path, *, hashed: bool) -> str | None:
        """Return what is wrong with the file, None if nothing is; its bytes are read only if `hashed`."""
        try:
            if not file.is_file():
                return f"{file.name} is missing"
            if (size := file.stat().st_size) != self.bytes:
                return f"{file.name} has {size} bytes, not {self.bytes}"
            if hashed and sha256_file(file) != self.sha256:
                return f"{file.name} is damaged"
        except OSError as error:
            return f"{file.name} cannot be read: {system_error(error)}"
        return None


class Marker(_Strict):
    """The content of `COMPLETE.json`. `sha256` is the hash of its other fields; earlier versions wrote none."""

    progress: _Progress
    identity: dict[str, Any]
    """What the checkpoint was saved with: fingerprint of the data, world size, ZeRO stage."""
    files: dict[_FileName, StoredFile]
    sha256: str | None = None

    @property
    def position(self) -> Position:
        """Position in the data after the checkpoint's last step."""
        return Position(**self.progress.position.model_dump())

    def fault(self, checkpoint: Path, *, hashed: bool) -> str | None:
        """Return what is wrong with the files of a checkpoint, None if nothing is.

        Args:
            checkpoint: the directory.
            hashed: whether to compare hashes too, which reads the files.
        """
        files = sorted(self.files.items())
        return next((fault for name, file in files if (fault := file.fault(checkpoint / name, hashed=hashed))), None)

    def parts(self, count: int) -> list["Marker"]:
        """Return `count` markers that share the files out among them, for as many ranks to check."""
        files = sorted(self.files.items())
        return [self.model_copy(update={"files": dict(files[number::count])}) for number in range(count)]


def write_marker(
    checkpoint: Path, step: int, position: Position, identity: dict[str, Any], files: dict[str, dict[str, Any]]
) -> None:
    """Write the marker that makes a directory a complete checkpoint.

    Args:
        checkpoint: the directory.
        step: optimizer steps taken.
        position: position in the data after them.
        identity: as in `Marker`.
        files: bytes and sha256 of every other file by name.
    """
    content = {"progress": {"step": step, "position": asdict(position)}, "identity": identity, "files": files}
    write_json(checkpoint / MARKER, content | {"sha256": _digest(content)})


def read_marker(checkpoint: Path) -> Marker:
    """Return the marker of a checkpoint.

    Raises:
        InputError: it is missing, damaged, or belongs to another step.
    """
    path = checkpoint / MARKER
    content = read_json(path)
    try:
        marker = Marker.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {where + ': ' if where else ''}{first['msg']}") from None
    if marker.sha256 not in (None, _digest({key: value for key, value in content.items() if key != "sha256"})):
        raise InputError(f"{path}: is damaged, its sha256 does not match")
    if marker.progress.step != checkpoint_step(checkpoint):
        raise InputError(f"{path}: belongs to step {marker.progress.step}")
    return marker


def step_name(step: int) -> str:
    """Return the name of a file or directory about a step, `step-` and at least eight digits."""
    return f"step-{step:08d}"


def parse_step_name(name: str) -> int | None:
    """Return the step in a name by `step_name`, also of a replaced checkpoint; None for any other name."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def checkpoint_step(path: Path) -> int:
    """Return the step in the name of a checkpoint's directory.

    Raises:
        InputError: the directory has another name.
    """
    step = parse_step_name(path.name)
    if step is None:
        raise InputError(f"{path}: {_NAMING}")
    return step


def named_checkpoints(directory: Path, warn: Callable[[str], None] = logger.warning) -> list[tuple[int, Path]]:
    """Return step and path of every directory with the name of a checkpoint, complete or not, newest first.

    Warns of other names that begin with step-. Of two with the same step, the replaced one comes second.
    """
    found = []
    for path in directory.glob("step-*"):
        step = parse_step_name(path.name)
        if step is None:
            warn(f"{path}: not used, {_NAMING}")
        else:
            found.append((step, path))
    return sorted(found, key=lambda each: (-each[0], each[1].name))


def complete_checkpoints(directory: Path, warn: Callable[[str], None] = logger.warning) -> list[Path]:
    """Return the checkpoints whose files are all there in full size, newest first; warn of the others."""
    complete = []
    for _, path in named_checkpoints(directory, warn):
        if fault := checkpoint_fault(path, hashed=False):
            warn(f"{path}: not used, {fault}")
        else:
            complete.append(path)
    return complete


def checkpoint_fault(checkpoint: Path, *, hashed: bool) -> str | None:
    """Return what is wrong with a checkpoint, None if nothing is; its files are read only if `hashed`."""
    try:
        marker = read_marker(checkpoint)
    except InputError as error:
        return str(error).removeprefix(f"{checkpoint}/")
    return marker.fault(checkpoint, hashed=hashed)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
