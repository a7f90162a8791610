"""The kernels over all pairs compile for Hopper, without a GPU, and keep their sums of products in registers."""

import importlib.util
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bali_ds.losses.contrastive import triton_negatives as kernels

HOPPER = GPUTarget("cuda", 90, 32)
CUOBJDUMP = Path(triton.__file__).with_name("backends") / "nvidia/bin/cuobjdump"
BF16, FP32 = torch.bfloat16, torch.float32
ALIGNED = ("rows", "columns", "scale", "bias", "row_sums", "column_sums", "out", "totals", "stride")
TYPES = {
    "begins": "*i32", "ends": "*i32", "row_floors": "*fp32", "column_floors": "*fp32", "row_factors": "*fp32",
    "column_factors": "*fp32", "scale": "*fp64", "bias": "*fp64", "row_sums": "*fp32", "column_sums": "*fp32",
    "totals": "*fp32", "num_rows": "i32", "num_columns": "i32", "column_number": "i32", "stride": "i32", "both": "i32",
}  # fmt: skip


def cases():
    kinds = [
        (kernels.EXPONENTIAL, False),
        (kernels.EXPONENTIAL, True),
        (kernels.MINED, True),
        (kernels.LOGISTIC, False),
    ]
    for kernel in ("_sum_kernel", "_derivative_kernel"):
        for dtype in (BF16, FP32):
            for negatives, symmetric in kinds:
                if kernel == "_sum_kernel" and negatives == kernels.LOGISTIC:
                    continue  # logistic negatives have no such sums
                default = dtype == BF16 and negatives == kernels.EXPONENTIAL and symmetric
                yield pytest.param(kernel, dtype, negatives, symmetric, marks=() if default else pytest.mark.slow)


def compiled(name, dtype, negatives, symmetric):
    kernel = getattr(kernels, name)
    of_sums = name == "_sum_kernel"
    blocks = kernels.SUM_BLOCKS[dtype] if of_sums else kernels.derivative_blocks(dtype, negatives)
    features = "*bf16" if dtype == BF16 else "*fp32"
    types = TYPES | {"rows": features, "columns": features, "out": features}
    constants = {
        "width": 768, "height": blocks.rows, "breadth": blocks.columns, "depth": blocks.depth, "group": 8,
        "negatives": negatives, "by_column": True, "symmetric": symmetric, "precision": kernels.PRECISION,
    }  # fmt: skip
    if negatives != kernels.MINED:
        constants |= {"row_floors": None, "column_floors": None}
    if negatives != kernels.LOGISTIC:
        constants["totals"] = None
    names = kernel.arg_names
    source = ASTSource(
        kernel,
        {each: "constexpr" if each in constants else types[each] for each in names},
        {each: value for each, value in constants.items() if each in names},
        {
            (place,): [["tt.divisibility", 16]]
            for place, each in enumerate(names)
            if each in ALIGNED and each not in constants
        },
    )
    return triton.compile(source, target=HOPPER, options={"num_warps": blocks.warps, "num_stages": blocks.stages})


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="the interpreter does not compile")
@pytest.mark.skipif(not CUOBJDUMP.exists(), reason="Triton came without cuobjdump")
@pytest.mark.parametrize(("name", "dtype", "negatives", "symmetric"), cases())
def test_products_stay_in_registers_of_a_hopper_gpu(name, dtype, negatives, symmetric, tmp_path):
    binary = tmp_path / "kernel.cubin"
    code = compiled(name, dtype, negatives, symmetric)
    binary.write_bytes(code.asm["cubin"])
    assembly = subprocess.run([CUOBJDUMP, "-sass", binary], capture_output=True, text=True, check=True).stdout
    operations = re.findall(r"\b(HGMMA|STL|LDL)\b", assembly)
    last = len(operations) - operations[::-1].index("HGMMA")
    assert set(operations[operations.index("HGMMA") : last]) == {"HGMMA"}
    if name == "_derivative_kernel":
        stores = re.findall(r"st\.global\.(\S+)", code.asm["ptx"])
        assert "v4.b32" in stores
        assert "b16" not in stores
