"""Byte layout of shards: tar and npy headers of fixed size, so that offsets are computed without parsing.

shards/README.md specifies the format.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

FORMAT_VERSION = 1
BLOCK = 512
NPY_HEADER = 128
LONGEST_NAME = 100
SMALLEST_SAMPLE = 8 * BLOCK
"""Bytes of a sample at least: four members of a header and a block of data each."""
END_OF_ARCHIVE = bytes(2 * BLOCK)

# The constant parts of a tar header: mode and owner, time, and everything after the type of a member.
_OWNER = b"0000644\0" + b"0000000\0" * 2
_TIME = b"\0" + b"00000000000\0"
_REST = bytes(LONGEST_NAME) + b"ustar\x0000" + bytes(247)
_FIXED_SUM = sum(_OWNER) + sum(_TIME) + sum(_REST) + 8 * ord(" ")
ARRAY_MEMBERS = ("tokens.npy", "mentions.npy", "edges.npy")
META_MEMBER = "meta.json"

SAMPLE_DTYPE = np.dtype([("offset", "<i8"), ("tokens", "<i4"), ("mentions", "<i4"), ("edges", "<i4"), ("views", "<i4")])


class MemberOffsets(NamedTuple):
    """Byte offsets of the data of a sample's arrays in its tar; int64 [n] each."""

    tokens: NDArray[np.int64]
    mentions: NDArray[np.int64]
    edges: NDArray[np.int64]
    meta: NDArray[np.int64]


def member_offsets(samples: NDArray[np.void], token_bytes: int) -> MemberOffsets:
    """Return the byte offsets of the array data of samples; `meta` is the offset of the tar header of the JSON member.

    Args:
        samples: rows of the sample table, SAMPLE_DTYPE [n].
        token_bytes: bytes per token id, 2 or 4.
    """
    tokens = samples["offset"].astype(np.int64) + BLOCK
    mentions = tokens + padded(NPY_HEADER + samples["tokens"].astype(np.int64) * token_bytes) + BLOCK
    edges = mentions + padded(NPY_HEADER + samples["mentions"].astype(np.int64) * 12) + BLOCK
    meta = edges + padded(NPY_HEADER + samples["edges"].astype(np.int64) * 12)
    return MemberOffsets(tokens + NPY_HEADER, mentions + NPY_HEADER, edges + NPY_HEADER, meta)


def token_dtype(vocab_size: int) -> np.dtype[np.generic]:
    """Return the dtype of token ids: uint16 if it can represent the vocabulary, int32 otherwise."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<i4")


def padded(size: Any) -> Any:
    """Round a size up to whole tar blocks."""
    return (size + (BLOCK - 1)) // BLOCK * BLOCK


@lru_cache(1 << 12)
def npy_header(dtype: DTypeLike, shape: tuple[int, ...]) -> bytes:
    """Return an npy 1.0 header: 128 bytes for scalar dtypes, a multiple of 128 for structured ones."""
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    size = -(-(len(text) + 11) // NPY_HEADER) * NPY_HEADER
    return b"\x93NUMPY\x01\x00" + (size - 10).to_bytes(2, "little") + text.ljust(size - 11) + b"\n"


def npy_bytes(array: NDArray[np.generic]) -> bytes:
    """Return an array as a whole npy file."""
    return npy_header(array.dtype, array.shape) + array.tobytes()


def tar_header(name: str, size: int, kind: bytes = b"0") -> bytes:
    """Return a ustar header that depends only on name, size and type: mode 0644, owner 0, time 0."""
    path, length = name.encode("ascii"), b"%011o" % size
    checksum = _FIXED_SUM + sum(path) + sum(length) + sum(kind)
    parts = (path.ljust(LONGEST_NAME, b"\0"), _OWNER, length, _TIME, b"%06o\0 " % checksum, kind, _REST)
    return b"".join(parts)


def tar_member(name: str, data: bytes, kind: bytes = b"0") -> bytes:
    """Return header, data and padding of one tar member."""
    return tar_header(name, len(data), kind) + data + bytes(-len(data) % BLOCK)


def shard_opening(description: Mapping[str, Any]) -> bytes:
    """Return the pax global header that opens a tar; its comment is the shard set's description as JSON.

    Tar readers skip it; `bali-ds shards index` rebuilds the index from it.
    """
    comment = json.dumps(description, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    body = f" comment={comment}\n".encode()
    size = len(body) + len(str(len(body)))
    size = len(body) + len(str(size))
    return tar_member("description", str(size).encode() + body, kind=b"g")
