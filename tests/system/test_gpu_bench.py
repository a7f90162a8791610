"""The GPU benchmark on small shapes of a CPU, so that it runs when a GPU is at hand."""

import json
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY, TIMEOUT_FACTOR

pytestmark = [pytest.mark.system, pytest.mark.slow]


@pytest.mark.timeout(900)
def test_every_part_passes_on_small_shapes(sample, tmp_path):
    out = tmp_path / "gpu.json"
    bench = [sys.executable, REPOSITORY / "bench/gpu.py", "--device", "cpu", "--small", "--out", out]
    done = subprocess.run(
        [*bench, "--data", sample.graph.parent],
        capture_output=True,
        text=True,
        check=False,
        timeout=840 * TIMEOUT_FACTOR,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    parts = json.loads(out.read_text())["parts"]
    assert set(parts) == {
        "random_state", "loss_oracle", "training", "loss_speed", "step", "attention", "encoder", "stages", "repeats",
        "engine", "layer", "ranks", "inference", "sanitizer",
    }  # fmt: skip
    assert all(part["passed"] for part in parts.values())
