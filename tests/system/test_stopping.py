"""Every way to stop a run leaves a complete checkpoint and no process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from bali_ds.checkpoint.marker import complete_checkpoints
from tests.conftest import REPOSITORY, TIMEOUT_FACTOR
from tests.ports import free_port

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


def processes(config: Path) -> list[psutil.Process]:
    """The launcher and the ranks of one job, oldest first; process ids wrap around, so they do not give that order."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if str(config) in (process.info["cmdline"] or []):
            found.append(process)
    return sorted(found, key=lambda process: process.create_time())


def becomes_true(condition, seconds=240.0):
    """Return whether a condition becomes true in time."""
    until = time.monotonic() + TIMEOUT_FACTOR * seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.2)
    return False


@pytest.fixture
def job(sample, tmp_path):
    """A long run that the launcher started, past its first step."""
    recipe = sample.recipe(tmp_path, steps=100_000, checkpoints={"every": 100_000})
    config = tmp_path / "recipe.yaml"
    config.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    deepspeed = [Path(sys.executable).parent / "deepspeed", "--num_accelerators", "2"]
    port = str(free_port())
    launcher = subprocess.Popen(
        [*deepspeed, "--master_port", port, REPOSITORY / "launch/train.py", "--config", config],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    metrics = recipe.directory / "metrics.jsonl"
    try:
        assert becomes_true(lambda: metrics.exists() and metrics.stat().st_size > 0)
        yield launcher, config, recipe.directory
    finally:
        for process in processes(config):
            process.kill()
        launcher.wait()


def kill_launcher(launcher, _config, _run):
    launcher.kill()


def terminate_launcher(launcher, _config, _run):
    launcher.terminate()


def terminate_rank(_launcher, config, _run):
    processes(config)[-1].send_signal(signal.SIGTERM)


def touch_stop_file(_launcher, _config, run):
    (run / "stop").touch()


@pytest.mark.parametrize(
    "stop",
    [
        pytest.param(terminate_launcher, marks=pytest.mark.slow),
        kill_launcher,
        pytest.param(terminate_rank, marks=pytest.mark.slow),
        touch_stop_file,
    ],
)
def test_a_stopped_run_has_a_complete_checkpoint_and_no_process_left(job, stop):
    launcher, config, run = job
    stop(*job)
    assert becomes_true(lambda: not processes(config), 120), [process.cmdline() for process in processes(config)]
    assert len(complete_checkpoints(run / "checkpoints")) == 1
    if stop in (terminate_rank, touch_stop_file):
        assert launcher.wait() == 75
