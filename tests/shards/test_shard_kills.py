"""Builds in several processes, killed at random moments: no process survives, and a rerun gives the same bytes.

BALI_KILLS=20 is the long form.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from bali_ds.shards.build import build_shards
from bali_ds.shards.build_settings import Corpus
from bali_ds.shards.shard_set import ShardSet

from .conftest import SETTINGS, write_corpus

KILLS = int(os.environ.get("BALI_KILLS", "3"))
VICTIMS = ("everything", "the first process", "another process")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, concept_names):
    folder = tmp_path_factory.mktemp("inputs")
    for number in range(8):
        write_corpus(folder / f"{number}.txt", concept_names, documents=200, seed=number, first=1000 * number)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def expected(tmp_path_factory, inputs, graph_directory, tokenizer_directory):
    out = tmp_path_factory.mktemp("expected") / "shards"
    corpora = [Corpus("pubtator", path) for path in inputs]
    build_shards(corpora, graph_directory, str(tokenizer_directory), out, SETTINGS)
    return contents(out)


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def session(leader: int) -> list[int]:
    """Return the running processes of a session."""
    alive = []
    for entry in Path("/proc").iterdir():
        try:
            state, _, _, number = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):  # not a process, or it has ended
            continue
        if int(number) == leader and state != "Z":
            alive.append(int(entry.name))
    return sorted(alive)


def wait_until_ended(leader: int) -> None:
    deadline = time.monotonic() + 60
    while session(leader):
        assert time.monotonic() < deadline, f"still running: {session(leader)}"
        time.sleep(0.1)


def start_and_wait_for_work(command, working, log):
    with open(log, "wb") as stream:  # not a pipe, which a surviving process would keep open
        builder = subprocess.Popen(command, start_new_session=True, stdout=stream, stderr=stream)
    while builder.poll() is None and not working.is_dir():
        time.sleep(0.01)
    return builder


def kill(victim: str, leader: int, draw: random.Random) -> None:
    processes = session(leader)
    others = [process for process in processes if process != leader]
    chosen = {"everything": processes, "the first process": [leader], "another process": others}[victim]
    if victim == "another process" and others:
        chosen = [draw.choice(others)]
    for process in chosen:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


@pytest.mark.timeout(60 + 60 * KILLS)
@pytest.mark.parametrize("where", ["workers", "ranks"])
def test_killed_at_any_moment_and_run_again(where, inputs, expected, tmp_path, graph_directory, tokenizer_directory):
    out, working, log = tmp_path / "shards", tmp_path / ".shards.build", tmp_path / "log"
    values = {"max-tokens": 48, "stored-fan-out": 8, "shard-samples": 32, "validation": 0.2, "max-name-tokens": 6}
    build = [
        sys.executable, "-m", "bali_ds", "shards", "build", *(f"--{name}={value}" for name, value in values.items()),
        "--graph", graph_directory, "--tokenizer", tokenizer_directory, "--out", out,
        "--corpus", *(f"pubtator:{path}" for path in inputs),
    ]  # fmt: skip
    command = [*build, "--workers", "2"] if where == "workers" else [*mpirun(2), *build, "--mpi"]
    builder = start_and_wait_for_work(command, working, log)
    begin = time.monotonic()
    assert builder.wait() == 0, log.read_text()
    duration = time.monotonic() - begin
    assert contents(out) == expected
    draw = random.Random(where)
    for number in range(KILLS):
        shutil.rmtree(out)
        builder = start_and_wait_for_work(command, working, log)
        time.sleep(draw.uniform(0, duration))
        victim = VICTIMS[number % len(VICTIMS)]
        kill(victim, builder.pid, draw)
        builder.wait()
        wait_until_ended(builder.pid)
        print(f"{where}: killed {victim}, status {builder.returncode}, {'whole' if out.exists() else 'unfinished'}")
        if out.exists():
            ShardSet.open(out)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert contents(out) == expected
        assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "shards"]


def mpirun(ranks: int) -> list[str]:
    launcher = shutil.which("mpirun", path=f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
    if launcher is None:
        pytest.skip("mpirun is not installed")
    return [launcher, "--allow-run-as-root", "--oversubscribe", "-n", str(ranks)]


def test_every_rank_runs_tasks(tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(
        "import time\n"
        "from mpi4py import MPI\n"
        "from bali_ds.shards.pools import open_mpi_pool\n"
        "def task(number):\n"
        "    time.sleep(0.05)\n"
        "    return number * number, MPI.COMM_WORLD.rank\n"
        "with open_mpi_pool() as pool:\n"
        "    if pool:\n"
        "        for _ in range(2):\n"
        "            results = dict(pool(task, [(number,) for number in range(30)]))\n"
        "            assert [results[n][0] for n in range(30)] == [n * n for n in range(30)]\n"
        "            print(sorted({rank for _, rank in results.values()}))\n"
    )
    for ranks in (1, 3):
        done = subprocess.run([*mpirun(ranks), sys.executable, script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [str(list(range(ranks)))] * 2
