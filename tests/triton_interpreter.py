"""Tests of Triton kernels in a process of their own: on a GPU if there is one, else in Triton's interpreter.

The interpreter has to be chosen before Triton is imported for the first time.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def run_cases(test: str, cases: str, *options: str) -> None:
    """Run a file of test cases beside a test file with further options for pytest; its failures are this test's."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(Path(test).with_name(cases)), "-p", "no:cacheprovider", *options],
        env=os.environ | ({} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
