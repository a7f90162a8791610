"""The tiles of `Exponential` by the kernels of native/, where the processor has AVX-512.

A general library's products do not use all of such a processor on every make of it, and what is elementwise cannot be
joined with them. The kernels are an optional part of the installation, built where there is a C compiler. What holds
torch to older instructions (`ATEN_CPU_CAPABILITY=avx2` or `default`) switches them off.
"""

import ctypes
import importlib.util
import os
from functools import cache
from math import ceil

import torch
from torch import Tensor

from bali_ds.losses.contrastive.sorted_views import ViewBlock
from bali_ds.losses.contrastive.tiles import Exponential, Tiles

_GRAIN = 64  # rows that stand still come in panels of 32, columns in panels of 8, and a tile has half as many of them


class _Sweep(ctypes.Structure):
    """The struct of native/packing.h, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in (
            "rows", "columns", "row_ids", "column_ids", "row_factors", "column_factors", "row_sums", "column_sums",
            "row_gradient", "column_gradient", "scratch",
        )),
        *((name, ctypes.c_int64) for name in ("m", "n", "d", "size")),
        *((name, ctypes.c_float) for name in ("scale", "shift")),
        *((name, ctypes.c_int32) for name in ("bfloat16", "triangle", "threads")),
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
    library.bali_scratch.restype = ctypes.c_int64
    return library


def available() -> bool:
    """Return whether the kernels were built, this processor can run them and torch may use AVX-512."""
    return _library() is not None


class NativeExponential(Exponential):
    """Negatives in float32, of features in float32 or bfloat16, on a CPU and as many threads as torch uses.

    Raises:
        ValueError: the views are not on a CPU, or the kernels are not `available`.
    """

    def __init__(self, tiles: Tiles) -> None:
        super().__init__(tiles)
        library = _library()
        if tiles.device.type != "cpu":
            raise ValueError(f"kernels: native ones are for CPUs, the views are on {tiles.device}")
        if library is None:
            raise ValueError(
                "kernels: native ones were not built (no C compiler?), the processor has no AVX-512, "
                "or ATEN_CPU_CAPABILITY forbids it"
            )
        self._library = library

    def sums(self, rows: ViewBlock, columns: ViewBlock, into: Tensor, across: Tensor | None, triangle: bool) -> None:
        """Add the sums of exponentials of each row to `into` [rows] and of each column to `across` [columns]."""
        if not (len(rows) and len(columns)):
            return
        self._call("bali_sums", self._sweep(rows, columns, triangle), row_sums=into, column_sums=across)

    def gradients(
        self, rows: ViewBlock, columns: ViewBlock, into: Tensor, across: Tensor | None, triangle: bool
    ) -> None:
        """Add derivatives by the rows, divided by the scale, to `into` [rows, d], by the columns to `across`."""
        if not (len(rows) and len(columns)):
            return
        sweep = self._sweep(rows, columns, triangle)
        sweep.row_factors, sweep.column_factors = (
            self.factors[block.side][block.span].data_ptr() for block in (rows, columns)
        )
        self._call("bali_gradients", sweep, row_gradient=into, column_gradient=across)

    def _sweep(self, rows: ViewBlock, columns: ViewBlock, triangle: bool) -> _Sweep:
        assert rows.features is not None
        assert columns.features is not None
        size = _GRAIN * ceil(min(self.tiles.size, max(len(rows), len(columns))) / _GRAIN)
        return _Sweep(
            rows=rows.features.data_ptr(), columns=columns.features.data_ptr(),
            row_ids=rows.ids.ctypes.data, column_ids=columns.ids.ctypes.data,
            m=len(rows), n=len(columns), d=rows.features.shape[1], size=size,
            scale=self.tiles.scale, shift=self.tiles.shift, bfloat16=rows.features.dtype == torch.bfloat16,
            triangle=triangle, threads=min(torch.get_num_threads(), ceil(len(columns) / (size // 2))),
        )  # fmt: skip

    def _call(self, function: str, sweep: _Sweep, **into: Tensor | None) -> None:
        for name, tensor in into.items():
            setattr(sweep, name, None if tensor is None else tensor.data_ptr())
        scratch = torch.empty(self._library.bali_scratch(ctypes.byref(sweep)))
        sweep.scratch = scratch.data_ptr()
        getattr(self._library, function)(ctypes.byref(sweep))
