"""Strict block-wise reader of delimited text: every row has every column, and every byte is UTF-8."""

import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import polars as pl
import pyarrow as pa
import pyarrow.csv

from bali_ds.errors import InputError, system_error
from bali_ds.files import open_regular

_BLOCK_BYTES = 32 * 2**20
"""Bytes, decompressed, that are parsed at a time; no line can be longer."""


def read_delimited(
    path: Path,
    wanted: Sequence[str],
    *,
    delimiter: str,
    columns: Sequence[str] | None = None,
    quoted: bool = False,
    parts: Sequence[Path] = (),
) -> Iterator[pl.DataFrame]:
    """Yield the wanted columns of a plain or gzip-compressed file, block by block, as strings.

    Empty lines are skipped.

    Args:
        path: the file; compression is detected from its content.
        wanted: the columns to read.
        delimiter: one character.
        columns: all columns in order; by default the first line names them.
        quoted: whether double quotes enclose fields; otherwise a quote is an ordinary character.
        parts: files that continue the first, as if all were one.

    Raises:
        InputError: a column is missing, a row has another number of fields, a line has more than 32 MiB, the bytes are
            not UTF-8, or the compressed stream is truncated; the message names the line.
    """
    if columns is None:
        columns = header(path, delimiter, quoted)
        missing = [name for name in wanted if name not in columns]
        if missing:
            raise InputError(f"{path}: line 1: has no column {missing[0]}; it has {', '.join(columns)[:200]}")
        skipped = 1
    else:
        skipped = 0
    read = pa.csv.ReadOptions(column_names=list(columns), skip_rows=skipped, block_size=_BLOCK_BYTES, use_threads=False)
    parse = pa.csv.ParseOptions(delimiter=delimiter, quote_char='"' if quoted else False, newlines_in_values=False)
    convert = pa.csv.ConvertOptions(
        include_columns=list(wanted), column_types=dict.fromkeys(wanted, pa.string()), strings_can_be_null=False
    )
    files = (path, *parts)
    if not _has_rows(files, skipped):
        return
    try:
        with (
            pa.PythonFile(_Concatenation(files)) if parts else pa.OSFile(str(path)) as file,
            pa.CompressedInputStream(file, "gzip") if _is_compressed(path) else file as stream,
            pa.csv.open_csv(stream, read, parse, convert) as batches,
        ):
            for batch in batches:
                yield pl.DataFrame(pl.from_arrow(batch))
    except (pa.ArrowException, OSError) as error:
        raise _diagnosis(files, delimiter, len(columns), quoted, error) from error


class _Concatenation(io.RawIOBase):
    """The bytes of several files, one after the other; gzip members may follow each other in one stream."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._waiting = list(files)
        self._current: IO[bytes] = io.BytesIO()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            count = self._current.readinto(buffer)  # type: ignore[attr-defined]
            if count or not self._waiting:
                return int(count)
            self._current.close()
            self._current = open_regular(self._waiting.pop(0))

    def close(self) -> None:
        self._current.close()
        super().close()


def _is_compressed(path: Path) -> bool:
    with open_regular(path) as stream:
        return stream.read(2) == b"\x1f\x8b"


def _open(files: Sequence[Path]) -> IO[bytes]:
    raw = io.BufferedReader(_Concatenation(files), 1 << 20)
    return gzip.GzipFile(fileobj=raw) if _is_compressed(files[0]) else raw  # type: ignore[return-value]


def header(path: Path, delimiter: str, quoted: bool) -> list[str]:
    """Return the fields of the first line.

    Raises:
        InputError: the file cannot be opened, decompressed or decoded.
    """
    with _open([path]) as stream:
        try:
            first = stream.readline(_BLOCK_BYTES).decode("utf-8")
        except (UnicodeDecodeError, EOFError, zlib.error, OSError) as error:
            raise _diagnosis([path], delimiter, 0, quoted, error) from error
    names = first.removeprefix("\ufeff").rstrip("\r\n").split(delimiter)
    return [name.strip('"') for name in names] if quoted else names


def _has_rows(files: Sequence[Path], skipped: int) -> bool:
    with _open(files) as stream:
        try:
            for _ in range(skipped):
                stream.readline(_BLOCK_BYTES)
            return any(block.strip(b"\r\n") for block in iter(lambda: stream.read(1 << 20), b""))
        except (EOFError, zlib.error, OSError):
            return True  # the reader reports what is wrong


def _diagnosis(files: Sequence[Path], delimiter: str, num_columns: int, quoted: bool, error: Exception) -> InputError:
    """Read the file again line by line to find the line that is wrong."""
    path, number = files[0], 0
    try:
        with _open(files) as lines:
            while line := lines.readline(_BLOCK_BYTES):
                number += 1
                problem = _line_problem(line, delimiter, num_columns, quoted)
                if problem:
                    return InputError(f"{path}: line {number}: {problem}")
    except (EOFError, gzip.BadGzipFile, zlib.error):
        return InputError(f"{path}: line {number + 1}: the compressed file is truncated or damaged; download it again")
    except OSError as failure:
        return InputError(f"{path}: cannot be read: {system_error(failure)}")
    return InputError(f"{path}: cannot be parsed: {' '.join(str(error).split())[:300]}")


def _line_problem(line: bytes, delimiter: str, num_columns: int, quoted: bool) -> str | None:
    if len(line) == _BLOCK_BYTES:
        return f"has more than {_BLOCK_BYTES >> 20} MiB; check the format of the file"
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"byte {error.start + 1} is not UTF-8; convert the file to UTF-8"
    if "\r" in text.rstrip("\r\n"):
        return "contains a carriage return inside the line; end lines with a newline"
    if not text.strip("\r\n"):
        return None
    found = text.rstrip("\r\n").count(delimiter) + 1
    if not quoted and num_columns and found != num_columns:
        return f"{found} columns, expected {num_columns}; the file is damaged or of another release"
    return None
