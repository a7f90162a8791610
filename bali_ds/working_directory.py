"""Temporary directories beside what they are for, and the exchange of two directories in one step.

A workspace is named `.bali-ds-` and random digits and holds a record of its owner, which the owner keeps locked. What a
killed owner left is removed by the next one that works in the same place; no other directory is, whatever its name.
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

PREFIX = ".bali-ds-"
_OWNER = "owner.json"
_FORMAT = "bali-ds workspace"
_RETIRED = "retired"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def temporary_name() -> str:
    """Return a file name that nobody else has, short enough for every file system."""
    return f"{PREFIX}{secrets.token_hex(8)}"


@contextmanager
def workspace(target: Path) -> Iterator[Path]:
    """Yield a new directory beside `target`, on the same file system, and remove it with all that it holds at the end.

    Raises:
        OSError: the parent of `target` cannot be written.
    """
    _remove_leftovers(target.parent)
    path = target.parent / temporary_name()
    path.mkdir()
    try:
        with open(path / _OWNER, "x", encoding="utf-8") as owner:
            with suppress(OSError):  # a file system without locks: no leftover is ever removed there
                fcntl.flock(owner, fcntl.LOCK_EX)
            # Written under the lock: a record that nobody locks has a dead owner.
            json.dump({"format": _FORMAT, "host": platform.node(), "target": target.name}, owner)
            owner.flush()
            yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def replace_directory(new: Path, target: Path) -> None:
    """Put a directory of a workspace in the place of `target`; what was there is in the workspace afterwards.

    A kill at any moment leaves the old directory or the new one under the name of `target`; where the system cannot
    exchange two directories in one step, the old one comes back when the next workspace is made beside it.

    Raises:
        OSError: the file system refuses.
    """
    try:
        os.rename(new, target)  # also replaces an empty directory
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not _exchanged(new, target):
            _rename_both(new, target)


def remove_directory(target: Path) -> None:
    """Remove a directory so that a kill leaves it whole or absent.

    Raises:
        OSError: it cannot be moved.
    """
    with workspace(target) as space:
        os.rename(target, space / "removed")


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two directories in one step; False where system or file system cannot."""
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
    os.rename(retired, new)  # nothing to bring back any more


def _remove_leftovers(parent: Path) -> None:
    for path in parent.glob(f"{PREFIX}*"):
        with suppress(OSError, ValueError), open(path / _OWNER, "r+", encoding="utf-8") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_leftover(path, json.loads(owner.read(4096)))


def _remove_leftover(path: Path, record: Any) -> None:
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        return
    if record.get("host") != platform.node():  # locks of another host may not be seen here
        return
    retired, target = path / _RETIRED, path.with_name(Path(str(record.get("target"))).name)
    if retired.exists() and not os.path.lexists(target):
        os.rename(retired, target)
    shutil.rmtree(path, ignore_errors=True)
