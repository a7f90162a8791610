"""Atomic writing of files, JSON files, checksums and gzip-aware text reading."""

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from bali_ds.errors import InputError
from bali_ds.working_directory import temporary_name


@contextmanager
def published_file(target: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Yield a stream to a temporary file that replaces `target` when the block succeeds.

    Symbolic links are followed. Permissions follow the umask.

    Raises:
        InputError: `target` cannot be written, or is a directory, a device or a pipe.
    """
    file = resolved(target)
    working = file.parent / temporary_name()
    try:
        if file.exists() and not file.is_file():
            raise InputError(f"{target}: is not a regular file; choose another path")
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(working, mode.replace("w", "x"), encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(working, file)
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            working.unlink()


def resolved(target: Path) -> Path:
    """Return the absolute path with symbolic links resolved, including dangling links."""
    return Path(os.path.realpath(target))


def write_json(target: Path, value: object) -> None:
    """Write `value` atomically as indented JSON with sorted keys."""
    with published_file(target, "w") as stream:
        json.dump(value, stream, indent=2, sort_keys=True, ensure_ascii=False)
        stream.write("\n")


def read_json(path: Path) -> Any:
    """Return the value of a JSON file.

    Raises:
        InputError: the file cannot be read or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: is not valid JSON: {error}") from error


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def open_text(path: Path) -> IO[str]:
    """Open a plain or gzip-compressed UTF-8 text file; compression is detected by content, not by name.

    Newlines are not translated. Errors while reading are UnicodeDecodeError, EOFError, gzip.BadGzipFile or zlib.error.

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


LONGEST_LINE = 1 << 26


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end) for all lines of a text file, plain or gzip.

    A byte-order mark is removed.

    Raises:
        InputError: the file cannot be opened, is truncated, is not UTF-8, or has a line of more than 64 Mi characters.
    """
    number = 0
    with open_text(path) as stream:
        try:
            while line := stream.readline(LONGEST_LINE):
                number += 1
                if len(line) == LONGEST_LINE:
                    raise InputError(f"{path}:{number}: has more than {LONGEST_LINE} characters; check the file format")
                yield number, (line.removeprefix("\ufeff") if number == 1 else line).rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}:{number + 1}: is not UTF-8 ({error.reason}); convert the file") from error
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(
                f"{path}: the compressed data is truncated or damaged after line {number}; download the file again"
            ) from error
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def nonempty_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield what `numbered_lines` yields, without the empty lines.

    Raises:
        InputError: as `numbered_lines`.
    """
    return ((number, line) for number, line in numbered_lines(path) if line)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a directory, to disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
