"""Columns of tables in files: Parquet, comma-separated (.csv), else tab-separated; text may be gzip-compressed."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet

from bali_ds.errors import InputError
from bali_ds.graph.delimited import header, read_delimited


def table_columns(path: Path) -> list[str]:
    """Return the names of a table's columns.

    Raises:
        InputError: the file cannot be read.
    """
    if _is_parquet(path):
        return _parquet(path).schema_arrow.names
    return header(path, *_text_format(path))


def read_table(path: Path, wanted: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Yield the wanted columns as strings, block by block; a missing value is the empty string.

    Raises:
        InputError: the file cannot be read, or its contents are damaged.
    """
    if not _is_parquet(path):
        delimiter, quoted = _text_format(path)
        yield from read_delimited(path, wanted, delimiter=delimiter, quoted=quoted)
        return
    row = 0
    try:
        for batch in _parquet(path).iter_batches(columns=list(wanted)):
            yield pl.DataFrame(pl.from_arrow(batch)).select(pl.col(wanted).cast(pl.String).fill_null(""))
            row += batch.num_rows
    except (pa.ArrowException, pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{path}: row {row + 1}: cannot be read: {' '.join(str(error).split())[:200]}") from error


def _is_parquet(path: Path) -> bool:
    return path.suffix == ".parquet"


def _text_format(path: Path) -> tuple[str, bool]:
    return (",", True) if path.name.removesuffix(".gz").endswith(".csv") else ("\t", False)


def _parquet(path: Path) -> pyarrow.parquet.ParquetFile:
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: is no readable Parquet file: {' '.join(str(error).split())[:200]}") from error
