"""Strict block-wise reader of delimited text: every row has every column, and every byte is UTF-8."""

import gzip
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.csv

from bali_ds.errors import InputError
from bali_ds.files import open_text

_BLOCK_BYTES = 32 * 2**20


def read_delimited(
    path: Path, wanted: Sequence[str], *, delimiter: str, columns: Sequence[str] | None = None, quoted: bool = False
) -> Iterator[pl.DataFrame]:
    """Yield the wanted columns of a plain or gzip-compressed file, block by block, as strings.

    Empty lines are skipped.

    Args:
        path: the file; compression is detected from its content.
        wanted: the columns to read.
        delimiter: one character.
        columns: all columns in order; by default the first line names them.
        quoted: whether double quotes enclose fields; otherwise a quote is an ordinary character.

    Raises:
        InputError: a column is missing, a row has another number of fields, the bytes are not UTF-8, or the
            compressed stream is truncated; the message names the line.
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
    if not _has_rows(path, skipped):
        return
    try:
        with (
            pa.OSFile(str(path)) as file,
            _decompressed(file) as stream,
            pa.csv.open_csv(stream, read, parse, convert) as batches,
        ):
            for batch in batches:
                yield pl.DataFrame(pl.from_arrow(batch))
    except (pa.ArrowException, OSError) as error:
        raise _diagnosis(path, delimiter, len(columns), quoted, error) from error


def _decompressed(file: pa.NativeFile) -> pa.NativeFile:
    compressed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return pa.CompressedInputStream(file, "gzip") if compressed else file


def header(path: Path, delimiter: str, quoted: bool) -> list[str]:
    """Return the fields of the first line.

    Raises:
        InputError: the file cannot be opened, decompressed or decoded.
    """
    with open_text(path) as lines:
        try:
            first = next(iter(lines), "")
        except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise _diagnosis(path, delimiter, 0, quoted, error) from error
    names = first.removeprefix("\ufeff").rstrip("\r\n").split(delimiter)
    return [name.strip('"') for name in names] if quoted else names


def _has_rows(path: Path, skipped: int) -> bool:
    with open_text(path) as lines:
        try:
            return any(line.strip("\r\n") for line in islice(lines, skipped, None))
        except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error):
            return True  # the reader reports what is wrong


def _diagnosis(path: Path, delimiter: str, num_columns: int, quoted: bool, error: Exception) -> InputError:
    """Read the file again line by line to find the line that is wrong."""
    number = 0
    try:
        with open(path, "rb") as plain:
            compressed = plain.read(2) == b"\x1f\x8b"
        with gzip.open(path) if compressed else open(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                problem = _line_problem(line, delimiter, num_columns, quoted)
                if problem:
                    return InputError(f"{path}: line {number}: {problem}")
    except (EOFError, gzip.BadGzipFile, zlib.error):
        return InputError(f"{path}: line {number + 1}: the compressed file is truncated or damaged; download it again")
    except OSError as failure:
        return InputError(f"{path}: cannot be read: {failure.strerror or failure}")
    return InputError(f"{path}: cannot be parsed: {' '.join(str(error).split())[:300]}")


def _line_problem(line: bytes, delimiter: str, num_columns: int, quoted: bool) -> str | None:
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
