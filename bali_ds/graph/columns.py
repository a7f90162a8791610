"""Memory-mapped columns: one-dimensional little-endian .npy files."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bali_ds.errors import InputError
from bali_ds.npy import open_npy

Array = NDArray[Any]


def write_column(folder: Path, name: str, values: Array) -> dict[str, object]:
    """Write `values` as `folder/name.npy`; return its entry for the manifest (dtype, length, sha256).

    Raises:
        OSError: the file cannot be written.
    """
    little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    digest = hashlib.sha256()
    with open(folder / f"{name}.npy", "wb") as stream:
        for block in (_header(little.dtype, little.size), little.data.cast("B") if little.size else b""):
            stream.write(block)
            digest.update(block)
    return {"dtype": little.dtype.str, "length": little.size, "sha256": digest.hexdigest()}


def open_column(folder: Path, name: str, dtype: str, length: int) -> Array:
    """Map `folder/name.npy` into memory, read-only.

    Raises:
        InputError: the file is missing, or is not this column.
    """
    return open_npy(folder / f"{name}.npy", dtype, (length,), "build the graph again")


def _header(dtype: np.dtype[Any], length: int) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": dtype.newbyteorder("<").str, "fortran_order": False, "shape": (length,)}
    )
    return stream.getvalue()


def search(ordered: NDArray[Any], wanted: NDArray[Any]) -> NDArray[np.int32]:
    """Return the position of each of `wanted` in the sorted array `ordered`, int32, -1 where it is missing."""
    if not ordered.size:
        return np.full(wanted.size, -1, np.int32)
    found = np.minimum(np.searchsorted(ordered, wanted), ordered.size - 1)
    return np.where(ordered[found] == wanted, found, -1).astype(np.int32)


class TextColumn(Sequence[str]):
    """Strings in one flat UTF-8 buffer.

    Attributes:
        text: uint8 [bytes].
        offsets: uint32 or int64 [n + 1]; string i is text[offsets[i]:offsets[i + 1]].
    """

    def __init__(self, text: Array, offsets: Array, name: str) -> None:
        self.text = text
        self.offsets = offsets
        self._name = name

    def __len__(self) -> int:
        return self.offsets.size - 1

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        return self.bytes_at(index).decode("utf-8", "replace")

    def bytes_at(self, index: int) -> bytes:
        """Return the UTF-8 bytes of one string.

        Raises:
            IndexError: the index is out of range.
            InputError: the column is damaged.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self._name} {index} of {len(self)}")
        start, end = int(self.offsets[index]), int(self.offsets[index + 1])
        if not start <= end <= self.text.size:
            raise InputError(f"{self._name}.offsets.npy: damaged at {index}; build the graph again")
        return self.text[start:end].tobytes()
