"""The sample's graph, shards and training compared with figures recorded before, in `figures.json`.

Files must be equal byte for byte. The order of floating-point sums depends on the processor, so losses and gradient
norms may drift. With the figures recorded under AVX-512, the largest relative differences of all recipes were:

| instruction set | losses | gradient norms, steps 1-10 | steps 11-30 |
| --- | --- | --- | --- |
| AVX2 (`ATEN_CPU_CAPABILITY=avx2`) | 1.5e-7 | 1.7e-6 | 2.7e-5 |
| SSE4 (`ATEN_CPU_CAPABILITY=default`) | 1.5e-7 | 3.5e-6 | 2.7e-5 |

The tolerances are ten times the largest of these and more, for processors not tried. A different sample, mask or weight
of an objective changes the figures by more than 1e-3.

To record on purpose: python -m tests.system.figures tests/system/figures.json
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]
LOSS_TOLERANCE = 2e-6
GRADIENT_TOLERANCE = 3e-4


@pytest.mark.parametrize("names", [["joint"], pytest.param([], marks=pytest.mark.slow)], ids=["joint", "all"])
def test_figures_are_those_recorded(tmp_path, names):
    expected = json.loads(Path(__file__).with_name("figures.json").read_text())
    # A process of its own: the recorder forks ranks, and other tests may have started threads in this one.
    command = [sys.executable, "-m", "tests.system.figures", tmp_path / "found.json", *names]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["sha256"] == expected["sha256"]
    assert set(found["steps"]) == set(names or expected["steps"])
    for recipe, series in found["steps"].items():
        assert set(series) == set(expected["steps"][recipe])
        for quantity, values in series.items():
            tolerance = LOSS_TOLERANCE if quantity == "loss" else GRADIENT_TOLERANCE
            before = expected["steps"][recipe][quantity]
            assert values == pytest.approx(before, rel=tolerance), f"{recipe}: {quantity}"
