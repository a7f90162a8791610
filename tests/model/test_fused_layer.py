"""Runs fused_layer_cases.py in a process of its own: on a GPU if there is one, else in Triton's interpreter.

The interpreter has to be chosen before Triton is imported for the first time.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_kernels_and_layer():
    cases = Path(__file__).with_name("fused_layer_cases.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(cases), "-p", "no:cacheprovider"],
        env=os.environ | ({} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
