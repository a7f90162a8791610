"""Negatives computed by the C kernels in native/, for CPUs with AVX-512.

The kernels fuse elementwise arithmetic into the matrix products and use AVX-512 on processors where torch's matrix
library does not. They are an optional extension, built at installation if there is a C compiler. Setting
`ATEN_CPU_CAPABILITY` to `avx2` or `default`, which restricts torch to older instructions, disables them.
"""

import ctypes
import importlib.util
import os
from functools import cache
from math import ceil

import torch
from torch import Tensor

from bali_ds.losses.contrastive.sorted_views import BlockPair, ViewBlock
from bali_ds.losses.contrastive.tiles import ExponentialNegatives, Tiles

_TILE_MULTIPLE = 64  # rows are packed in panels of 32, columns of 8, and a tile has half as many columns as rows


class _Pass(ctypes.Structure):
    """`struct Pass` of native/packing.h, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in (
            "rows", "columns", "row_ids", "column_ids", "row_factors", "column_factors", "row_sums", "column_sums",
            "row_gradient", "column_gradient", "workspace",
        )),
        *((name, ctypes.c_int64) for name in ("m", "n", "d", "size")),
        *((name, ctypes.c_float) for name in ("scale", "shift")),
        *((name, ctypes.c_int32) for name in ("bfloat16", "symmetric", "threads")),
    )  # fmt: skip


@cache
def _library() -> ctypes.CDLL | None:
    if os.environ.get("ATEN_CPU_CAPABILITY") in ("default", "avx2"):
        return None
    found = importlib.util.find_spec("bali_ds.losses.contrastive._native_tiles")
    if found is None or found.origin is None:
        return None
    library = ctypes.CDLL(found.origin)
    if not library.bali_supported():
        return None
    # An extension built from other sources would read the arguments at wrong offsets.
    if not hasattr(library, "bali_pass_bytes") or library.bali_pass_bytes() != ctypes.sizeof(_Pass):
        return None
    library.bali_workspace_floats.restype = ctypes.c_int64
    return library


def available() -> bool:
    """Return whether the kernels were built, the processor supports them and torch may use AVX-512."""
    return _library() is not None


class NativeNegatives(ExponentialNegatives):
    """Negatives in float32, from float32 or bfloat16 features, on a CPU with as many threads as torch uses.

    Raises:
        ValueError: the views are not on a CPU, or the kernels are not `available`.
    """

    def __init__(self, tiles: Tiles) -> None:
        super().__init__(tiles)
        library = _library()
        if tiles.device.type != "cpu":
            raise ValueError(f"kernels: 'native' computes on CPUs, but the views are on {tiles.device}; use 'auto'")
        if library is None:
            raise ValueError(
                "kernels: 'native' is not available: the package was built without a C compiler or from older sources, "
                "the processor lacks AVX-512, or ATEN_CPU_CAPABILITY excludes it; use 'auto', or reinstall the package"
            )
        self._library = library

    def sums(self, pair: BlockPair) -> None:
        """Add each anchor's sum of exponentials to the accumulators, float64 [rows] and [columns]."""
        rows, columns, row_accumulator, column_accumulator, symmetric = pair
        if len(rows) and len(columns):
            arguments = self._arguments(rows, columns, symmetric)
            self._call("bali_sums", arguments, row_sums=row_accumulator, column_sums=column_accumulator)

    def gradients(self, pair: BlockPair) -> None:
        """Add the gradients by the features, divided by the logit scale, to the accumulators, float32 [views, d]."""
        rows, columns, row_accumulator, column_accumulator, symmetric = pair
        if len(rows) and len(columns):
            arguments = self._arguments(rows, columns, symmetric)
            arguments.row_factors, arguments.column_factors = (
                self.factors[block.side][block.span].data_ptr() for block in (rows, columns)
            )
            self._call("bali_gradients", arguments, row_gradient=row_accumulator, column_gradient=column_accumulator)

    def _arguments(self, rows: ViewBlock, columns: ViewBlock, symmetric: bool) -> _Pass:
        assert rows.features is not None
        assert columns.features is not None
        size = _TILE_MULTIPLE * ceil(min(self.tiles.size, max(len(rows), len(columns))) / _TILE_MULTIPLE)
        return _Pass(
            rows=rows.features.data_ptr(), columns=columns.features.data_ptr(),
            row_ids=rows.concept_ids.data_ptr(), column_ids=columns.concept_ids.data_ptr(),
            m=len(rows), n=len(columns), d=rows.features.shape[1], size=size,
            scale=self.tiles.scale, shift=self.tiles.shift, bfloat16=rows.features.dtype == torch.bfloat16,
            symmetric=symmetric, threads=min(torch.get_num_threads(), ceil(len(columns) / (size // 2))),
        )  # fmt: skip

    def _call(self, function: str, arguments: _Pass, **accumulators: Tensor | None) -> None:
        for name, tensor in accumulators.items():
            setattr(arguments, name, None if tensor is None else tensor.data_ptr())
        workspace = torch.empty(self._library.bali_workspace_floats(ctypes.byref(arguments)))
        arguments.workspace = workspace.data_ptr()
        getattr(self._library, function)(ctypes.byref(arguments))
