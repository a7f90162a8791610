"""The short form of `bench/survival.py`: a few kills, SIGTERMs and full disks."""

import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


def test_killed_and_terminated_runs_equal_the_uninterrupted_one():
    options = [
        "--kills",
        "4",
        "--terms",
        "3",
        "--full-disks",
        "2",
        "--steps",
        "30",
        "--stages",
        "1",
        "3",
        "--seed",
        "4",
        "--no-json",
    ]
    done = subprocess.run(
        [sys.executable, REPOSITORY / "bench/survival.py", *options], capture_output=True, text=True, check=False
    )
    last = done.stdout.splitlines()[-1]
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "runs equal bit for bit" in last
    assert "2 full disks survived" in last
    assert "differ" not in last
