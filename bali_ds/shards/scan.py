"""Reads a tar from front to back and accepts nothing but the layout on paper: for lint and for a lost index."""

import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bali_ds.errors import InputError
from bali_ds.shards.layout import (
    ARRAY_MEMBERS,
    BLOCK,
    END_OF_ARCHIVE,
    META_MEMBER,
    NPY_HEADER,
    npy_header,
    padded,
    shard_opening,
    tar_header,
)
from bali_ds.shards.sample import Sample

_TRIPLES = (np.dtype("<i4"), np.dtype("<i4"))


@dataclass(frozen=True)
class ScannedSample:
    """A sample and where its members lie in the tar."""

    sample: Sample
    offset: int
    size: int


class TarScanner:
    """One shard of a set, mapped into memory.

    Attributes:
        description: what the tar says about its shard set.

    Raises:
        InputError: the tar is missing, or its opening is not that of a shard; while scanning: anything in the tar is
            not as it should be. The message names the file and the byte.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as stream:
                self._bytes = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read: {error}") from error
        self.description, self._start = self._opening()

    def samples(self, token_dtype: np.dtype[Any]) -> Iterator[ScannedSample]:
        """Yield the samples in order, every header and padding byte checked."""
        at = self._start
        while self._bytes[at : at + BLOCK] != END_OF_ARCHIVE[:BLOCK]:
            offset = at
            key = self._key(at)
            arrays = []
            for name, dtype, width in zip(ARRAY_MEMBERS, (token_dtype, *_TRIPLES), (1, 3, 3), strict=True):
                data, at = self._member(at, f"{key}.{name}")
                arrays.append(self._array(data, dtype, width, at))
            data, at = self._member(at, f"{key}.{META_MEMBER}")
            meta = self._json(data, at)
            if not isinstance(meta, dict):
                raise self._fault(at, "the meta data are no JSON object")
            sample = Sample(key, arrays[0], arrays[1], arrays[2], meta)
            yield ScannedSample(sample, offset, at - offset)
        if self._bytes[at:] != END_OF_ARCHIVE:
            raise self._fault(at, "the end of the archive is not two empty blocks")

    def _opening(self) -> tuple[dict[str, Any], int]:
        size = self._size(0)
        record = self._bytes[BLOCK : BLOCK + size]
        head, _, body = record.partition(b" comment=")
        description = self._json(body.removesuffix(b"\n"), 0) if head.isdigit() else None
        if not isinstance(description, dict) or shard_opening(description) != self._bytes[: BLOCK + padded(size)]:
            raise self._fault(0, "it does not open with the description of a shard set")
        return description, BLOCK + padded(size)

    def _key(self, at: int) -> str:
        name = self._bytes[at : at + BLOCK].split(b"\0", 1)[0].decode("ascii", "replace")
        key = name.split(".", 1)[0]
        if not key or "/" in name or "\\" in name:
            raise self._fault(at, f"member {name[:60]!r} is no member of a sample")
        return key

    def _member(self, at: int, name: str) -> tuple[bytes, int]:
        size = self._size(at)
        end = at + BLOCK + padded(size)
        if len(name) > 100 or self._bytes[at : at + BLOCK] != tar_header(name, size):
            raise self._fault(at, f"the header of {name} is not as it should be")
        if any(self._bytes[at + BLOCK + size : end]):
            raise self._fault(at, f"the padding of {name} is not empty")
        return self._bytes[at + BLOCK : at + BLOCK + size], end

    def _size(self, at: int) -> int:
        field = self._bytes[at + 124 : at + 135]
        if len(field) < 11 or not field.isdigit() or any(digit > ord("7") for digit in field):
            raise self._fault(at, "there is no tar header")
        size = int(field, 8)
        if at + BLOCK + padded(size) > len(self._bytes):
            raise self._fault(at, "a member runs past the end of the file")
        return size

    def _array(self, data: bytes, dtype: np.dtype[Any], width: int, at: int) -> NDArray[Any]:
        count, rest = divmod(len(data) - NPY_HEADER, dtype.itemsize * width)
        shape = (count,) if width == 1 else (count, width)
        if count < 0 or rest or data[:NPY_HEADER] != npy_header(dtype, shape):
            raise self._fault(at, f"an array is not npy {dtype} of width {width}")
        return np.frombuffer(data, dtype, offset=NPY_HEADER).reshape(shape)

    def _json(self, data: bytes, at: int) -> Any:
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise self._fault(at, "a JSON member is no JSON") from error

    def _fault(self, at: int, what: str) -> InputError:
        return InputError(f"{self.path}: byte {at}: {what}; copy or build the shard again")
