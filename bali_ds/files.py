"""Files that are complete or absent: write beside, then rename."""

import gzip
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from bali_ds.errors import InputError


@contextmanager
def published_directory(target: Path) -> Iterator[Path]:
    """Yield an empty directory beside `target` that takes its place when the block succeeds.

    An existing `target` is replaced; on any error it stays and the new directory is removed.

    Raises:
        InputError: the parent of `target` cannot be written, or `target` is a file.
    """
    target = Path(target)
    if target.exists() and not target.is_dir():
        raise InputError(f"{target}: is a file; name a directory")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        working = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror}") from error
    try:
        working.chmod(0o755)
        yield working
        _replace_directory(working, target)
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(working, ignore_errors=True)


def _replace_directory(working: Path, target: Path) -> None:
    for path in working.rglob("*"):
        if path.is_file():
            sync(path)
    if target.exists():
        retired = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        os.rename(target, retired / target.name)
        os.rename(working, target)
        shutil.rmtree(retired, ignore_errors=True)
    else:
        os.rename(working, target)
    sync(target.parent)


@contextmanager
def published_file(target: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Yield a stream beside `target` that takes its place when the block succeeds."""
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror}") from error
    working = Path(name)
    try:
        with os.fdopen(descriptor, mode, encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        working.chmod(0o644)
        os.replace(working, target)
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        working.unlink(missing_ok=True)


def write_json(target: Path, value: object) -> None:
    """Publish `value` as readable JSON with sorted keys and a final newline."""
    with published_file(target, "w") as stream:
        json.dump(value, stream, indent=2, sort_keys=True, ensure_ascii=False)
        stream.write("\n")


def read_json(path: Path) -> Any:
    """Return the value of a JSON file.

    Raises:
        InputError: the file is missing or is no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: is no valid JSON: {error}") from error


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def open_text(path: Path) -> IO[str]:
    """Open a plain or gzip-compressed UTF-8 text file; compression is told by content, not by name.

    Newlines are kept as they are. Decoding and decompression errors surface while reading, as
    UnicodeDecodeError, EOFError, gzip.BadGzipFile or zlib.error.

    Raises:
        InputError: the file cannot be opened.
    """
    try:
        with open(path, "rb") as stream:
            compressed = stream.read(2) == b"\x1f\x8b"
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if compressed:
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return open(path, encoding="utf-8", newline="")


def sync(path: Path) -> None:
    """Return when a file's bytes, or a directory's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
