"""Concept identifiers as fixed-width bytes, so that thousands are looked up in one search."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bali_ds.errors import InputError
from bali_ds.graph.columns import search

if TYPE_CHECKING:
    import polars as pl

LONGEST = 255


def fixed_width(strings: "pl.Series") -> NDArray[Any]:
    """Return strings as an array of UTF-8 bytes, dtype S{longest}, that sorts in byte order.

    Raises:
        InputError: an identifier is longer than 255 bytes or holds a NUL.
    """
    import pyarrow as pa  # here, since whoever only opens a graph needs none of it

    array = strings.to_arrow().cast(pa.large_string())
    offsets = np.frombuffer(array.buffers()[1], np.int64, len(array) + 1, array.offset * 8)
    lengths = np.diff(offsets)
    width = max(int(lengths.max(initial=0)), 1)
    if width > LONGEST:
        raise InputError(f"identifier {strings[int(lengths.argmax())][:60]}...: is longer than {LONGEST} bytes")
    text = np.frombuffer(array.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
    if not text.all():
        raise InputError("an identifier holds a NUL character; remove it")
    if (lengths == width).all():
        return text.view(f"S{width}")
    padded = np.zeros((len(array), width), np.uint8)
    padded[np.arange(width) < lengths[:, None]] = text
    return padded.view(f"S{width}").ravel()


class IdentifierIndex:
    """Sorted identifiers and where each stands; made once, asked for millions.

    Attributes:
        ordered: S{width} [C], in byte order.
    """

    def __init__(self, ordered: NDArray[Any]) -> None:
        self.ordered = ordered
        self._keys = _integers(ordered) if ordered.dtype.itemsize <= 8 else ordered

    def find(self, strings: "pl.Series") -> NDArray[np.int32]:
        """Return the position of each string, int32, -1 where it is missing."""
        wanted = fixed_width(strings)
        if self._keys is self.ordered:
            return search(self.ordered, wanted)
        found = search(self._keys, _integers(wanted.astype("S8", copy=False)))
        if wanted.dtype.itemsize > 8:
            found[np.char.str_len(wanted) > 8] = -1
        return found


def _integers(identifiers: NDArray[Any]) -> NDArray[np.uint64]:
    """Return up to eight bytes as integers of the same order, which compare many times faster."""
    return identifiers.astype("S8", copy=False).view(">u8").astype(np.uint64)
