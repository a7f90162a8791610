"""Temporary directories next to their target, and atomic replacement of directories.

A workspace is named `.bali-ds-` and random digits and holds a record that its owner keeps locked. A workspace whose
owner was killed is removed by the next process that makes one in the same parent; other directories are never removed.
"""

import ctypes
import errno
import fcntl
import json
import os
import platform
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bali_ds.parsing import parse_json

PREFIX = ".bali-ds-"
_OWNER = "owner.json"
_FORMAT = "bali-ds workspace"
_RETIRED = "retired"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def temporary_name() -> str:
    """Return a random file name, short enough for every file system."""
    return f"{PREFIX}{secrets.token_hex(8)}"


@contextmanager
def workspace(target: Path) -> Iterator[Path]:
    """Yield a new directory in the parent of `target`, and remove it with its contents at the end.

    Raises:
        OSError: the parent of `target` cannot be written.
    """
    _remove_leftovers(target.parent)
    path = target.parent / temporary_name()
    path.mkdir()
    try:
        with open(path / _OWNER, "x", encoding="utf-8") as owner:
            with suppress(OSError):  # file systems without locks: leftovers are not removed
                fcntl.flock(owner, fcntl.LOCK_EX)
            # written under the lock, so the owner of an unlocked record is dead
            json.dump({"format": _FORMAT, "host": platform.node(), "target": target.name}, owner)
            owner.flush()
            yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def replace_directory(new: Path, target: Path) -> None:
    """Move a directory of a workspace to `target`; the old target is in the workspace afterwards.

    A kill at any moment leaves the old or the new directory at `target`. If the system cannot exchange two directories
    atomically, the old one may be restored only when the next workspace is made in the same parent.

    Raises:
        OSError: the file system does not allow it.
    """
    try:
        os.rename(new, target)  # also replaces an empty directory
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not _exchanged(new, target):
            _rename_both(new, target)


def remove_directory(target: Path) -> None:
    """Remove a directory atomically: after a kill it is complete or missing.

    Raises:
        OSError: it cannot be moved.
    """
    with workspace(target) as space:
        os.rename(target, space / "removed")


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two directories atomically; return False if the system or file system cannot."""
    exchange: Any = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if exchange is None:
        return False
    exchange.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    if exchange(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))


def _rename_both(new: Path, target: Path) -> None:
    retired = new.with_name(_RETIRED)
    os.rename(target, retired)
    try:
        os.rename(new, target)
    except OSError:
        os.rename(retired, target)
        raise
    os.rename(retired, new)  # nothing to restore from here on


def _remove_leftovers(parent: Path) -> None:
    for path in parent.glob(f"{PREFIX}*"):
        with suppress(OSError, ValueError), open(path / _OWNER, "r+", encoding="utf-8") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_leftover(path, parse_json(owner.read(4096), str(path)))


def _remove_leftover(path: Path, record: Any) -> None:
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        return
    if record.get("host") != platform.node():  # locks of other hosts may be invisible here
        return
    retired, target = path / _RETIRED, path.with_name(Path(str(record.get("target"))).name)
    if retired.exists() and not os.path.lexists(target):
        os.rename(retired, target)
    shutil.rmtree(path, ignore_errors=True)
