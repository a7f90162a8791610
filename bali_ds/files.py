"""Atomic writing of files, and bounded reading of files that anybody may have written: JSON, YAML, text, checksums."""

import gzip
import hashlib
import io
import json
import logging
import os
import stat
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

from bali_ds.errors import InputError, system_error
from bali_ds.parsing import MOST_VALUES, parse_json, parse_yaml
from bali_ds.working_directory import temporary_name

logger = logging.getLogger(__name__)


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
        raise InputError(f"{target}: cannot be written: {system_error(error)}") from error
    finally:
        with suppress(OSError):
            working.unlink()


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Append lines to a record of what happened. If it cannot be written, a warning says so and nothing is raised."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as stream:
            stream.writelines(f"{line}\n" for line in lines)
    except OSError as error:
        logger.warning("%s: cannot be written, the run continues without it: %s", path, system_error(error))


def resolved(target: Path) -> Path:
    """Return the absolute path with symbolic links resolved, including dangling links."""
    return Path(os.path.realpath(target))


def write_json(target: Path, value: object) -> None:
    """Write `value` atomically as indented JSON with sorted keys."""
    with published_file(target, "w") as stream:
        json.dump(value, stream, indent=2, sort_keys=True, ensure_ascii=False)
        stream.write("\n")


LARGEST_JSON = 1 << 28
"""Bytes of a JSON file."""
LARGEST_TEXT = 1 << 18
"""Bytes of a file that people write: YAML, a hostfile, a DeepSpeed configuration."""


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. Anything else could be endless, or wait forever for a writer.

    Raises:
        InputError: the file cannot be opened, or is a directory, a device or a pipe.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {system_error(error)}") from error
    except ValueError as error:  # a zero byte in the path
        raise InputError(f"{path}: cannot be read: {error}") from error
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise InputError(f"{path}: cannot be read: it is not a regular file")


def read_bytes(path: Path, limit: int) -> bytes:
    """Return the bytes of a regular file.

    Raises:
        InputError: the file cannot be read, or has more than `limit` bytes.
    """
    with open_regular(path) as stream:
        try:
            content = stream.read(limit + 1)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {system_error(error)}") from error
    if len(content) > limit:
        raise InputError(f"{path}: has more than {limit:,} bytes; check that it is the right file")
    return content


def read_text(path: Path, limit: int = LARGEST_TEXT) -> str:
    """Return the text of a UTF-8 file, with newlines as in the file and without a byte-order mark.

    Raises:
        InputError: as `read_bytes`, or the file is not UTF-8.
    """
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 ({error.reason}); convert the file") from error


def read_json(
    path: Path, *, limit: int = LARGEST_JSON, non_finite: bool = False, most_values: int = MOST_VALUES
) -> Any:
    """Return the value of a JSON file.

    Args:
        path: the file.
        limit: the most bytes that it may have.
        non_finite: whether NaN and infinities are read as numbers.
        most_values: values that it may hold.

    Raises:
        InputError: as `read_bytes` and `parse_json`.
    """
    return parse_json(read_bytes(path, limit), str(path), non_finite=non_finite, most_values=most_values)


def read_json_lines(path: Path, *, non_finite: bool = False) -> Iterator[tuple[int, Any]]:
    """Yield (line number from 1, JSON value) for the non-empty lines of a file, plain or gzip.

    Raises:
        InputError: as `numbered_lines` and `parse_json`.
    """
    for number, line in nonempty_lines(path):
        yield number, parse_json(line, f"{path}:{number}", non_finite=non_finite)


def read_yaml(path: Path) -> Any:
    """Return the value of a YAML file.

    Raises:
        InputError: as `read_text` and `parse_yaml`.
    """
    return parse_yaml(read_text(path), str(path))


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes.

    Raises:
        InputError: it cannot be opened, or is not a regular file.
    """
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]


def open_text(path: Path) -> IO[str]:
    """Open a plain or gzip-compressed UTF-8 text file; compression is detected by content, not by name.

    Newlines are not translated. Errors while reading are UnicodeDecodeError, EOFError, gzip.BadGzipFile or zlib.error.

    Raises:
        InputError: the file cannot be opened, or is not a regular file.
    """
    with open_regular(path) as stream:
        compressed = stream.read(2) == b"\x1f\x8b"
    plain = open_regular(path)
    return io.TextIOWrapper(gzip.GzipFile(fileobj=plain) if compressed else plain, encoding="utf-8", newline="")


LONGEST_LINE = 1 << 26


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end) for all lines of a text file, plain or gzip.

    A byte-order mark is removed.

    Raises:
        InputError: the file cannot be opened, is truncated, is not UTF-8, or has a line of more than 64 Mi characters.
    """
    with open_text(path) as stream:
        yield from lines_of(stream, str(path))


def lines_of(stream: IO[str], name: str) -> Iterator[tuple[int, str]]:
    """Yield what `numbered_lines` yields from an open stream; `name` is its name in messages.

    Raises:
        InputError: as `numbered_lines`.
    """
    number = 0
    try:
        while line := stream.readline(LONGEST_LINE):
            number += 1
            if len(line) == LONGEST_LINE:
                raise InputError(f"{name}:{number}: has more than {LONGEST_LINE} characters; check the file format")
            yield number, (line.removeprefix("\ufeff") if number == 1 else line).rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}:{number + 1}: is not UTF-8 ({error.reason}); convert the file") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(
            f"{name}: the compressed data is truncated or damaged after line {number}; download the file again"
        ) from error
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {system_error(error)}") from error


MOST_EMPTY_LINES = 1 << 20
"""Empty lines in a row; a compressed file of a few megabytes can hold billions."""


def nonempty_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield what `numbered_lines` yields, without the lines of white space alone.

    Raises:
        InputError: as `numbered_lines`, or more than 1 Mi lines in a row are empty.
    """
    last = 0
    for number, line in numbered_lines(path):
        if line.strip():
            last = number
            yield number, line
        elif number - last > MOST_EMPTY_LINES:
            raise InputError(f"{path}:{number}: more than {MOST_EMPTY_LINES} empty lines in a row; check the file")


def sync(path: Path) -> None:
    """Flush a file, or the entries of a directory, to disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
