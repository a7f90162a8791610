"""Training over several hosts, which are network namespaces of this machine with an sshd each."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bali_ds.config import dump_recipe

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "launch/test_hosts.sh"
SSH_PORT = 2277

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]


def script(*arguments, **options):
    return subprocess.run(
        [str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, check=False, cwd=REPOSITORY, **options
    )


@pytest.fixture
def make_hosts(tmp_path):
    """Make any number of hosts; they go when the test ends."""
    if not os.environ.get("BALI_REQUIRE_HOSTS"):
        pytest.skip("makes network namespaces; set BALI_REQUIRE_HOSTS=1 to run it")
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


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_hosts_train_one_model(make_hosts, sample, tmp_path, launcher, count):
    binaries = Path(sys.executable).parent
    path = f"{binaries}{os.pathsep}{os.environ['PATH']}"
    if not shutil.which(TOOLS[launcher], path=path):
        assert not os.environ.get("BALI_REQUIRE_HOSTS"), f"{TOOLS[launcher]} is missing"
        pytest.skip(f"{TOOLS[launcher]} is missing")
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
    lines = (hosts / "hostfile").read_text().splitlines()
    first = lines[0].split()[0]
    started = script(
        "run", hosts, binaries / "deepspeed", "--hostfile", hosts / "hostfile", "--master_addr", first,
        "--no_ssh_check", *LAUNCHERS[launcher], "launch/train.py", "--config", tmp_path / "recipe.yaml",
        env={**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY)}, timeout=1100,
    )  # fmt: skip
    assert started.returncode == 0, started.stdout[-4000:] + started.stderr[-4000:]
    marker = json.loads((recipe.directory / "checkpoints/step-00000002/COMPLETE.json").read_text())
    assert marker["identity"]["world size"] == count == len(lines)
    rows = [json.loads(line) for line in (recipe.directory / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2]
