"""A few of the interruptions of `bench/survival.py`."""

import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]
SHORT = {"kills": 1, "terms": 1, "full-disks": 1, "second-jobs": 0, "hung-workers": 0, "slow-servers": 0}
LONG = {"kills": 4, "terms": 3, "full-disks": 2, "second-jobs": 2, "hung-workers": 2, "slow-servers": 2}


@pytest.mark.parametrize(
    ("counts", "options"),
    [
        (SHORT, "--steps 20 --stages 1"),
        pytest.param(LONG, "--steps 30 --stages 1 3", marks=pytest.mark.slow),
    ],
    ids=["short", "long"],
)
def test_interrupted_runs_equal_the_uninterrupted_one(counts, options):
    wanted = " ".join(f"--{what} {count}" for what, count in counts.items())
    done = subprocess.run(
        [sys.executable, REPOSITORY / "bench/survival.py", *f"{wanted} {options}".split(), "--seed", "4", "--no-json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    last = done.stdout.splitlines()[-1]
    assert "runs equal bit for bit" in last
    assert not counts["terms"] or f"{counts['terms']} SIGTERMs survived" in last
    for what in ("full-disks", "second-jobs", "hung-workers", "slow-servers"):
        assert not counts[what] or f"{counts[what]} {what.replace('-', ' ')} survived" in last
    assert "differ" not in last
