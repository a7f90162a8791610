"""Training on several hosts, simulated by network namespaces of this machine with an sshd each."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bali_ds.config import dump_recipe

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "launch/simulate_hosts.sh"
SSH_PORT = 2277

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]


def script(*arguments, **options):
    return subprocess.run(
        [str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, check=False, cwd=REPOSITORY, **options
    )


@pytest.fixture
def make_hosts(tmp_path):
    """Simulate any number of hosts until the test ends."""
    if not os.environ.get("BALI_REQUIRE_HOSTS"):
        pytest.skip("creates network namespaces; set BALI_REQUIRE_HOSTS=1 to run it")
    checked = script("check")
    assert checked.returncode == 0, checked.stderr
    directory = tmp_path / "hosts"

    def make(count):
        made = script("up", count, directory)
        assert made.returncode == 0, made.stderr
        return directory

    yield make
    if directory.exists():
        script("down", directory)


LAUNCHERS = {
    "pdsh": ["--ssh_port", SSH_PORT],
    "openmpi": ["--launcher", "openmpi", "--launcher_args", "--allow-run-as-root --mca btl_tcp_if_include eth0"],
}
TOOLS = {"pdsh": "pdsh", "openmpi": "mpirun"}


def command(hosts, launcher, config, *overrides):
    """Return the command that starts training on all hosts of a hostfile, and its environment."""
    binaries = Path(sys.executable).parent
    path = f"{binaries}{os.pathsep}{os.environ['PATH']}"
    if not shutil.which(TOOLS[launcher], path=path):
        assert not os.environ.get("BALI_REQUIRE_HOSTS"), f"{TOOLS[launcher]} is missing"
        pytest.skip(f"{TOOLS[launcher]} is missing")
    first = (hosts / "hostfile").read_text().split()[0]
    arguments = [
        SCRIPT, "run", hosts, binaries / "deepspeed", "--hostfile", hosts / "hostfile", "--master_addr", first,
        "--no_ssh_check", *LAUNCHERS[launcher], "launch/train.py", "--config", config, *overrides,
    ]  # fmt: skip
    return [str(each) for each in arguments], {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY)}


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_hosts_train_one_model(make_hosts, sample, tmp_path, launcher, count):
    hosts = make_hosts(count)
    recipe = sample.recipe(
        tmp_path / "runs",
        name=launcher,
        batch={"passages": 12},
        steps=2,
        deepspeed=REPOSITORY / "ds_configs/zero1.json",
        validation={"passages": 16},
    )
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    arguments, environment = command(hosts, launcher, tmp_path / "recipe.yaml")
    started = subprocess.run(
        arguments, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=1100
    )
    assert started.returncode == 0, started.stdout[-4000:] + started.stderr[-4000:]
    marker = json.loads((recipe.directory / "checkpoints/step-00000002/COMPLETE.json").read_text())
    assert marker["identity"]["world size"] == count
    rows = [json.loads(line) for line in (recipe.directory / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2]


def test_the_others_name_a_lost_host_and_resume_without_it(make_hosts, sample, tmp_path):
    hosts = make_hosts(3)
    recipe = sample.recipe(
        tmp_path / "runs",
        batch={"passages": 12},
        steps=100_000,
        deepspeed=REPOSITORY / "ds_configs/zero1.json",
        checkpoints={"every": 1},
        fault_tolerance={"host_minutes": 0.5},
    )
    config = tmp_path / "recipe.yaml"
    config.write_text(dump_recipe(recipe))
    arguments, environment = command(hosts, "pdsh", config)
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(arguments, env=environment, cwd=REPOSITORY, stdout=log, stderr=log)
    try:
        until = time.monotonic() + 600
        while not list((recipe.directory / "checkpoints").glob("step-*")):
            assert job.poll() is None, (tmp_path / "log").read_text()[-4000:]
            assert time.monotonic() < until
            time.sleep(0.5)
        assert script("cut", hosts, 3).returncode == 0
        job.wait(180)
    finally:
        job.kill()
    assert "no sign of life from host bali-" in (tmp_path / "log").read_text()
    taken = [row["step"] for row in steps_of(recipe)][-1]

    left = (hosts / "hostfile").read_text().splitlines()[:2]
    (hosts / "hostfile").write_text("\n".join(left) + "\n")
    arguments, environment = command(hosts, "pdsh", config, f"steps={taken + 2}", "validation.passages=16")
    again = subprocess.run(
        arguments, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=600
    )
    assert again.returncode == 0, again.stdout[-4000:] + again.stderr[-4000:]
    rows = steps_of(recipe)
    assert [row["step"] for row in rows] == list(range(1, taken + 3))
    assert [row["samples"] for row in rows] == [12 * row["step"] for row in rows]


def steps_of(recipe):
    rows = [json.loads(line) for line in (recipe.directory / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]
