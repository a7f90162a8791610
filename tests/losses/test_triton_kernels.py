"""Runs triton_cases.py."""

import pytest

from tests.triton_interpreter import needs_triton, run_cases


@needs_triton
@pytest.mark.parametrize("marks", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_kernels(marks):
    run_cases(__file__, "triton_cases.py", "-m", marks)
