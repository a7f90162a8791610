"""A few kills, SIGTERMs and full disks of `bench/survival.py`."""

import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]
SHORT = "--kills 1 --terms 1 --full-disks 1 --steps 20 --stages 1 --seed 4"
LONG = "--kills 4 --terms 3 --full-disks 2 --steps 30 --stages 1 3 --seed 4"


@pytest.mark.parametrize(
    ("options", "full_disks"), [(SHORT, 1), pytest.param(LONG, 2, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_killed_and_terminated_runs_equal_the_uninterrupted_one(options, full_disks):
    done = subprocess.run(
        [sys.executable, REPOSITORY / "bench/survival.py", *options.split(), "--no-json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    last = done.stdout.splitlines()[-1]
    assert "runs equal bit for bit" in last
    assert f"{full_disks} full disks survived" in last
    assert "differ" not in last
