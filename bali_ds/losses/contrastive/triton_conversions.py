"""Conversions in Triton kernels that are the compiler's on a GPU and spelled out for Triton's interpreter on a CPU.

The interpreter multiplies bfloat16 as if it were integers, and truncates where the compiler rounds to nearest.
"""

import triton
import triton.language as tl

INTERPRETED: bool = triton.knobs.runtime.interpret
_INTERPRETED = tl.constexpr(INTERPRETED)


@triton.jit
def as_operand(values):  # type: ignore[no-untyped-def]
    """Return values as an operand of a product."""
    if _INTERPRETED:
        return values.to(tl.float32)
    return values


@triton.jit
def rounded(values, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return finite float32 values rounded to nearest float32, float16 or bfloat16."""
    if _INTERPRETED and dtype == tl.bfloat16:
        bits = values.to(tl.uint32, bitcast=True)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return values.to(dtype)
