"""The linking benchmark on the sample data set, so that it runs when it is needed."""

import json
import subprocess
import sys

import pytest

from bench.linking_scores import unpacked
from tests.conftest import REPOSITORY, TIMEOUT_FACTOR

pytestmark = [pytest.mark.system, pytest.mark.slow]


@pytest.mark.timeout(1200)
def test_rows_are_complete_and_kept(tmp_path):
    out = tmp_path / "linking.json"
    command = [sys.executable, REPOSITORY / "bench/linking_quality.py", "--device", "cpu", "--sample", "--out", out]
    command += ["--folder", tmp_path / "sample", "--steps", "2", "--seeds", "1"]

    def run(*options):
        done = subprocess.run(
            [*command, *options], capture_output=True, text=True, check=False, timeout=1100 * TIMEOUT_FACTOR
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("--variants", "untrained", "recipe", "names and mentions", "recipe, averaged")
    rows = json.loads(out.read_text())["rows"]
    assert [row["variant"] for row in rows] == ["untrained", "recipe", "names and mentions", "recipe, averaged"]
    assert all(row["tokens"] > 0 for row in rows[1:])
    hits = rows[0]["hits"]
    right = dict(zip(hits["scorings"], unpacked(hits["held_out"], len(hits["scorings"]), 1390), strict=True))
    exact, remembered = (right[f"context=0 graph=0 memory={memory} spelling=0"] for memory in ("none", "0.1"))
    assert 0.25 < exact.mean() < remembered.mean()
    table = run("--variants", "untrained", "recipe", "--table")
    assert "alone → names" in table
    assert "    - untrained, alone → names" in table
    assert "names and mentions " not in table
    assert json.loads(out.read_text())["rows"] == rows
