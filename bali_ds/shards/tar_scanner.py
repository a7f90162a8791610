"""Strict sequential reader of tars, which accepts only the specified layout, and the rebuild of an index."""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bali_ds.errors import InputError
from bali_ds.files import open_regular, read_json, sha256_file
from bali_ds.parsing import parse_json
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
    token_dtype,
)
from bali_ds.shards.sample import Sample
from bali_ds.shards.shard_index import SPLITS, check_counts, check_description
from bali_ds.shards.shard_set import Shard
from bali_ds.shards.writer import SIZES_DTYPE, sample_sizes, write_index, write_sample_table

_TRIPLES = (np.dtype("<i4"), np.dtype("<i4"))


@dataclass(frozen=True)
class ScannedSample:
    """A sample, and the offset and size of its members in the tar."""

    sample: Sample
    offset: int
    size: int


class TarScanner:
    """Reader of one memory-mapped shard.

    Attributes:
        description: the description of the shard set in the tar.

    Raises:
        InputError: the tar is missing, or does not begin with a description. While reading samples: anything in the tar
            violates the layout. The message names the file and the byte.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open_regular(path) as stream:
                self._bytes = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except InputError:
            raise
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read: {error}") from error
        self.description, self._start = self._opening()

    def samples(self, token_dtype: np.dtype[Any]) -> Iterator[ScannedSample]:
        """Yield the samples in order, with every header and padding byte checked."""
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
                raise self._error(at, "the metadata is not a JSON object")
            sample = Sample(key, arrays[0], arrays[1], arrays[2], meta)
            yield ScannedSample(sample, offset, at - offset)
        if len(self._bytes) - at != len(END_OF_ARCHIVE) or self._bytes[at:] != END_OF_ARCHIVE:
            raise self._error(at, "the end of the archive is not two empty blocks")

    def _opening(self) -> tuple[dict[str, Any], int]:
        size = self._size(0)
        record = self._bytes[BLOCK : BLOCK + size]
        head, _, body = record.partition(b" comment=")
        description = self._json(body.removesuffix(b"\n"), 0) if head.isdigit() else None
        if not isinstance(description, dict) or shard_opening(description) != self._bytes[: BLOCK + padded(size)]:
            raise self._error(0, "does not begin with the description of a shard set")
        check_description(description, str(self.path))
        return description, BLOCK + padded(size)

    def _key(self, at: int) -> str:
        name = self._bytes[at : at + BLOCK].split(b"\0", 1)[0].decode("ascii", "replace")
        key = name.split(".", 1)[0]
        if not key or "/" in name or "\\" in name:
            raise self._error(at, f"member {name[:60]!r} is not a member of a sample")
        return key

    def _member(self, at: int, name: str) -> tuple[bytes, int]:
        size = self._size(at)
        end = at + BLOCK + padded(size)
        if len(name) > 100 or self._bytes[at : at + BLOCK] != tar_header(name, size):
            raise self._error(at, f"the header of {name} violates the layout")
        if any(self._bytes[at + BLOCK + size : end]):
            raise self._error(at, f"the padding of {name} is not zero")
        return self._bytes[at + BLOCK : at + BLOCK + size], end

    def _size(self, at: int) -> int:
        field = self._bytes[at + 124 : at + 135]
        if len(field) < 11 or not field.isdigit() or any(digit > ord("7") for digit in field):
            raise self._error(at, "there is no tar header")
        size = int(field, 8)
        if at + BLOCK + padded(size) > len(self._bytes):
            raise self._error(at, "a member extends past the end of the file")
        return size

    def _array(self, data: bytes, dtype: np.dtype[Any], width: int, at: int) -> NDArray[Any]:
        count, rest = divmod(len(data) - NPY_HEADER, dtype.itemsize * width)
        shape = (count,) if width == 1 else (count, width)
        if count < 0 or rest or data[:NPY_HEADER] != npy_header(dtype, shape):
            raise self._error(at, f"an array is not npy {dtype} of width {width}")
        return np.frombuffer(data, dtype, offset=NPY_HEADER).reshape(shape)

    def _json(self, data: bytes, at: int) -> Any:
        return parse_json(data, f"{self.path}: byte {at}")

    def _error(self, at: int, what: str) -> InputError:
        return InputError(f"{self.path}: byte {at}: {what}; copy or build the shard again")


def reindex(path: Path) -> dict[str, Any]:
    """Write samples.npy and index.json of a directory of tars and return the index.

    Counts of what is not in the tars (documents without a passage, unlinked mentions) are taken from the report of the
    build if it exists; otherwise the contents of the tars are counted.

    Raises:
        InputError: the directory has no tar, a tar is damaged, or the tars are of different shard sets.
    """
    tars = [tar for split in SPLITS for tar in sorted(path.glob(f"{split}-*.tar"))]
    if not tars:
        raise InputError(f"{path}: has no train-*.tar or validation-*.tar")
    description = TarScanner(tars[0]).description
    counts = _Counts()
    shards, tables = [], []
    for tar in tars:
        scanner = TarScanner(tar)
        for key in description | scanner.description:
            if scanner.description.get(key) != description.get(key):
                raise InputError(f"{tar}: belongs to another shard set than {tars[0].name}: {key} differs")
        samples = list(_counted(scanner, token_dtype(description["tokenizer"]["vocab_size"]), counts))
        tables.append(np.array(samples, SIZES_DTYPE))
        split = tar.name.split("-", 1)[0]
        shards.append(Shard(tar.name, split, len(samples), tar.stat().st_size, sha256_file(tar)))
    report = path / "report.json"
    values = check_counts(read_json(report), str(report)) if report.is_file() else counts.values()
    write_sample_table(path, description, tables)
    return write_index(path, description, shards, values)


@dataclass
class _Counts:
    keys: set[str] = field(default_factory=set)
    documents: set[str] = field(default_factory=set)
    concept_ids: set[int] = field(default_factory=set)
    mentions: int = 0

    def values(self) -> dict[str, int]:
        return {
            "documents": len(self.documents),
            "passages": len(self.keys),
            "mentions": self.mentions,
            "linked_mentions": self.mentions,
            "concepts": len(self.concept_ids),
        }


def _counted(scanner: TarScanner, dtype: np.dtype[Any], counts: _Counts) -> Iterator[tuple[int, ...]]:
    """Yield the sizes of the samples of a tar and add them to the counts."""
    for scanned in scanner.samples(dtype):
        sample = scanned.sample
        if sample.key in counts.keys:
            raise InputError(
                f"{scanner.path}: sample {sample.key} occurs twice; merge only sets without common samples"
            )
        counts.keys.add(sample.key)
        counts.documents.add(str(sample.meta.get("document")))
        counts.concept_ids.update(sample.mentions[:, 2].tolist())
        counts.mentions += len(np.unique(sample.mentions[:, :2], axis=0))
        yield sample_sizes(sample, scanned.size)
