"""Runs fused_layer_cases.py."""

from tests.triton_interpreter import needs_triton, run_cases


@needs_triton
def test_kernels_and_layer():
    run_cases(__file__, "fused_layer_cases.py")
