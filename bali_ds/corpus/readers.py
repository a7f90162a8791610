"""The formats that documents come in."""

from collections.abc import Callable, Iterator
from pathlib import Path

from bali_ds.corpus.document import Document, ReadReport
from bali_ds.corpus.pubtator import read_pubtator
from bali_ds.errors import InputError

Reader = Callable[[Path, ReadReport], Iterator[Document]]

READERS: dict[str, Reader] = {"pubtator": read_pubtator}


def read_documents(format: str, path: Path, report: ReadReport) -> Iterator[Document]:  # noqa: A002
    """Yield the documents of one file; `report` is complete when the iteration is.

    Raises:
        InputError: the format is unknown, or the file is not what it should be.
    """
    if format not in READERS:
        raise InputError(f"corpus format {format!r}: is unknown; use one of {', '.join(READERS)}")
    return READERS[format](Path(path), report)
