"""The random numbers of dropout in Triton kernels: a hash of each cell's index, so that no mask is stored."""

import triton
import triton.language as tl


@triton.jit
def _mixed(bits):  # type: ignore[no-untyped-def]
    """Return a bijective hash of 32 bits (Wellons, "Prospecting for hash functions", 2018: lowbias32)."""
    bits = (bits ^ (bits >> 16)) * 0x7FEB352D
    bits = (bits ^ (bits >> 15)) * 0x846CA68B
    return bits ^ (bits >> 16)


@triton.jit
def dropout_factors(seeds, cells, dropout):  # type: ignore[no-untyped-def]
    """Return what dropout multiplies each cell by: 0 for a share of `dropout`, else 1 / (1 - dropout).

    Args:
        seeds: pointer to an int64 seed.
        cells: the index of each cell, taken modulo 2**32.
        dropout: the share.
    """
    seed = tl.load(seeds)
    folded = _mixed(seed.to(tl.uint32)) ^ (seed >> 32).to(tl.uint32)
    bits = _mixed(cells.to(tl.uint32) ^ folded)
    return tl.where(bits.to(tl.float32) * 2.0**-32 >= dropout, 1 / (1 - dropout), 0.0)
