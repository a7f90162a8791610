"""The batch script under a fake Slurm: three small programs that behave as its manual pages describe."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

SCRIPT = REPOSITORY / "launch/slurm.sbatch"
HOSTS, PER_HOST = ("node-7", "node-8"), 2

# Starts all tasks and exits with the highest status, 128 + N for a task that signal N ended. SIGUSR1 goes to the tasks
# and not to their children.
SRUN = """
import os, signal, subprocess, sys
options = []
while sys.argv[1].startswith("--"):
    options.append(sys.argv.pop(1))
print("options", *options, flush=True)
tasks = []
for number in range(int(os.environ["TASKS"])):
    own = {"SLURM_PROCID": number, "SLURM_LOCALID": number % 2, "SLURM_NODEID": number // 2, "SLURM_NTASKS": 4}
    tasks.append(subprocess.Popen(sys.argv[1:], env=os.environ | {key: str(value) for key, value in own.items()}))
signal.signal(signal.SIGUSR1, lambda *_: [task.send_signal(signal.SIGUSR1) for task in tasks])
statuses = [task.wait() for task in tasks]
sys.exit(max(status if status >= 0 else 128 - status for status in statuses))
"""
SCONTROL = """
import os, sys
if sys.argv[1:3] == ["show", "hostnames"]:
    assert sys.argv[3] == os.environ["SLURM_JOB_NODELIST"]
    print(os.environ["HOSTS"])
else:
    print("scontrol", *sys.argv[1:])
"""
# Replaces the Python of the environment: a rank that records its arguments and environment.
RANK = """
import json, os, signal, sys, time
rank = os.environ["RANK"]
def leave(*_):
    sys.exit(75)
signal.signal(signal.SIGUSR1, leave)
with open(f"rank-{rank}.writing", "w") as stream:
    json.dump({"arguments": sys.argv[1:], "environment": dict(os.environ), "parent": os.getppid()}, stream)
os.rename(f"rank-{rank}.writing", f"rank-{rank}.json")
if "wait" in os.environ["STATUSES"]:
    time.sleep(60)
sys.exit(int(os.environ["STATUSES"].split()[int(rank)]))
"""


@pytest.fixture
def job(tmp_path):
    """Start the script as Slurm does."""
    programs = {"bin/srun": SRUN, "bin/scontrol": SCONTROL, ".venv/bin/python": RANK}
    for name, text in programs.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"#!{sys.executable}\n{text.lstrip()}")
        (tmp_path / name).chmod(0o755)

    def start(*arguments, statuses="0 0 0 0", **variables):
        slurm = {
            "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "41234", "SLURM_JOB_NODELIST": "node-[7-8]",
            "HOSTS": "\n".join(HOSTS), "TASKS": str(len(HOSTS) * PER_HOST), "STATUSES": statuses,
        }  # fmt: skip
        environment = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", **slurm, **variables}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(["bash", SCRIPT, *arguments], env=environment, cwd="/", text=True, **pipes)

    return start


def ranks(folder: Path):
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(4)]


def test_ranks_get_their_numbers_and_the_address_of_rank_0(job, tmp_path):
    said, _ = job("recipe.yaml", "name=two words").communicate(timeout=60)
    assert "scontrol requeue" not in said
    options = said.splitlines()[0].split()[1:]
    # Without these the statuses of ranks that are still exiting would be lost, or the evaluation by rank 0.
    assert {"--kill-on-bad-exit=0", "--wait=0"} <= set(options)
    for number, rank in enumerate(ranks(tmp_path)):
        assert rank["arguments"] == ["-m", "bali_ds.cli.train", "--config", "recipe.yaml", "name=two words"]
        environment = rank["environment"]
        assert environment["RANK"] == str(number)
        assert environment["LOCAL_RANK"] == str(number % PER_HOST)
        assert environment["WORLD_SIZE"] == "4"
        assert environment["MASTER_ADDR"] == "node-7"
        assert 1024 < int(environment["MASTER_PORT"]) < 65536
        assert environment["OMP_NUM_THREADS"] == "4"


@pytest.mark.parametrize("named", [True, False])
def test_the_environment_is_the_named_one_or_the_active_one(job, tmp_path, named):
    (tmp_path / ".venv").rename(tmp_path / "other")
    variables = {"BALI_ENVIRONMENT": f"{tmp_path}/other"} if named else {}
    if not named:
        (tmp_path / "bin/python").symlink_to(tmp_path / "other/bin/python")
    assert job("recipe.yaml", **variables).wait(timeout=60) == 0
    assert len(ranks(tmp_path)) == 4


@pytest.mark.parametrize(
    ("statuses", "status", "requeued"),
    [
        ("0 0 0 0", 0, False),
        ("75 75 75 75", 75, True),
        ("2 2 2 2", 2, False),
        ("3 3 3 3", 3, False),
        ("1 75 75 75", 75, True),
        ("1 0 0 0", 1, False),
    ],
)
def test_only_an_interrupted_run_is_requeued(job, statuses, status, requeued):
    process = job("recipe.yaml", statuses=statuses)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == status
    assert ("scontrol requeue 41234" in said) == requeued


def test_a_run_is_requeued_a_hundred_times_at_most(job):
    process = job("recipe.yaml", statuses="75 75 75 75", SLURM_RESTART_COUNT="100")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "requeue" not in said


def test_the_signal_before_the_time_limit_reaches_the_ranks(job, tmp_path):
    directives = re.findall(r"^#SBATCH (\S+)$", SCRIPT.read_text(), re.MULTILINE)
    assert "--signal=USR1@300" in directives  # "B:" would signal the script only
    assert {"--requeue", "--open-mode=append"} <= set(directives)
    process = job("recipe.yaml", statuses="wait")
    until = time.monotonic() + 60
    while len(list(tmp_path.glob("rank-*.json"))) < 4:
        assert time.monotonic() < until
        time.sleep(0.05)
    (srun,) = {rank["parent"] for rank in ranks(tmp_path)}
    os.kill(srun, signal.SIGUSR1)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "scontrol requeue 41234" in said


def test_without_a_recipe_it_says_how_to_call_it(job):
    process = job()
    _, said = process.communicate(timeout=60)
    assert process.returncode
    assert "sbatch launch/slurm.sbatch RECIPE" in said
