"""The command `train` with two ranks, stopped while it trains: a checkpoint, status 75, no traceback; it resumes."""

import os
import signal
import subprocess
import sys

import pytest
import yaml

from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_resumes_with_the_same_command(sample, tmp_path, number):
    recipe = sample.recipe(tmp_path / "runs", steps=40)
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "MASTER_PORT")}
    environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "bali_ds", "train", str(tmp_path / "own.yaml"), "--ranks", "2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, start_new_session=True, **pipes)
    for line in process.stdout:
        if line.startswith("step 2/"):
            break
    # a terminal sends Ctrl-C to all processes of the foreground, a scheduler SIGTERM to the first
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    said = process.communicate()[0]
    assert process.returncode == 75, said
    assert f"stopped by {number.name}" in said
    assert "Traceback" not in said
    done = subprocess.run([*command, "steps=12"], env=environment, cwd=tmp_path, **pipes, check=False)
    assert done.returncode == 0, done.stdout
    assert "resumed at" in done.stdout
    assert "steps: 40 before, 12 now" in done.stdout
