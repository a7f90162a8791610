"""Memory-mapped npy files that anybody may have written."""

import io
import math
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from bali_ds.errors import InputError, system_error
from bali_ds.files import open_regular

_LONGEST_HEADER = 1 << 12


def open_npy(path: Path, dtype: DTypeLike, shape: tuple[int | None, ...], remedy: str) -> NDArray[Any]:
    """Map an npy file of known dtype and shape into memory, read-only, as a plain array.

    The file must be exactly as long as its header says, so that no allocation depends on what a file claims. Slices of
    a plain array are much cheaper than those of np.memmap.

    Args:
        path: the file.
        dtype: of its array; never of Python objects, so no pickle is read.
        shape: of its array in C order; None allows any length of an axis.
        remedy: what to do with another file, for messages.

    Raises:
        InputError: the file cannot be read, or does not hold such an array.
    """
    wanted = np.dtype(dtype)
    with open_regular(path) as stream:
        head = io.BytesIO(stream.read(_LONGEST_HEADER))
        size = os.fstat(stream.fileno()).st_size
        try:
            found_shape, fortran_order, found = _read_header(head)
        except Exception as error:  # numpy evaluates the header as a Python literal, which may fail in any way
            raise InputError(f"{path}: is not a valid npy file; {remedy}") from error
        fits = len(found_shape) == len(shape) and all(
            length in (None, own) for own, length in zip(found_shape, shape, strict=True)
        )
        if found != wanted or not fits or (fortran_order and len(shape) > 1):
            expected = ["any" if length is None else length for length in shape]
            has = f"{_described(found)} {list(found_shape)}"
            raise InputError(f"{path}: has {has}, expected {_described(wanted)} {expected}; {remedy}")
        described = head.tell() + math.prod(found_shape) * wanted.itemsize
        if size != described:
            raise InputError(f"{path}: has {size} bytes, but its header describes {described}; {remedy}")
        if 0 in found_shape:
            return np.empty(found_shape, wanted)
        return _mapped(path, stream, wanted, found_shape, head.tell())


def map_bytes(path: Path, size: int) -> NDArray[np.uint8]:
    """Map a file of known size into memory, read-only, as its bytes.

    Raises:
        InputError: the file cannot be read, or is of another size.
    """
    with open_regular(path) as stream:
        found = os.fstat(stream.fileno()).st_size
        if found != size:
            raise InputError(f"{path}: has {found} bytes, expected {size}")
        return _mapped(path, stream, np.dtype(np.uint8), (size,), 0)


def _mapped(path: Path, stream: BinaryIO, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int) -> NDArray[Any]:
    try:
        return np.asarray(np.memmap(stream, dtype, "r", offset, shape))
    except (OSError, ValueError) as error:  # no memory is left, or the file system cannot map files
        raise InputError(f"{path}: cannot be read: {system_error(error) or error}") from error


def _read_header(head: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(head)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read(head, max_header_size=_LONGEST_HEADER)
    if any(length < 0 for length in shape):
        raise ValueError("a negative length")
    return shape, fortran_order, dtype


def _described(dtype: np.dtype[Any]) -> str:
    return f"records of {len(dtype.names)} fields" if dtype.names else str(dtype)
