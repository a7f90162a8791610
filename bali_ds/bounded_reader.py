"""Stream that refuses to hand out more bytes than its reader can keep in memory."""

from pathlib import Path
from typing import Protocol

from bali_ds.errors import InputError


class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class BoundedReader:
    """Reads a stream up to a number of bytes; `restart` counts from 0 again.

    Args:
        path: the file, for messages.
        stream: its bytes, decompressed.
        limit: the largest number of bytes since the start or the last restart.
        purpose: what the bytes lack ("without a document"), for messages.
    """

    def __init__(self, path: Path, stream: _Readable, limit: int, purpose: str) -> None:
        self._path = path
        self._stream = stream
        self._limit = limit
        self._purpose = purpose
        self._count = 0

    def restart(self) -> None:
        """Count from 0 again."""
        self._count = 0

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes.

        Raises:
            InputError: they exceed the limit.
        """
        data = self._stream.read(size)
        self._count += len(data)
        if self._count > self._limit:
            raise InputError(
                f"{self._path}: has more than {self._limit >> 20} MiB {self._purpose}; check the format of the file"
            )
        return data
