"""Runs of the sample data set as `bench/survival.py` starts, watches and interrupts them.

Ranks are forks of this process, which has imported everything, under a launcher that behaves like DeepSpeed's.
"""

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))
os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
os.environ["PYTHONWARNINGS"] = "ignore"
warnings.filterwarnings("ignore")

import psutil  # noqa: E402
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine  # noqa: E402

import bali_ds.training.trainer as loop  # noqa: E402
from bali_ds.cli import main as bali_ds  # noqa: E402
from bali_ds.config import Recipe  # noqa: E402
from bali_ds.errors import InputError, RunEnded, exit_status  # noqa: E402
from tests.forked import fork, fork_ranks  # noqa: E402

RANKS = 2
EVERY = 5
GRACE = 5.0
# As in the tests: for a busy or slow machine.
TIMEOUT_FACTOR = float(os.environ.get("BALI_TIMEOUT_FACTOR", "1"))
PATIENCE = 300.0 * TIMEOUT_FACTOR
# Fraction of writes that fail on a temporarily full disk: about half of all checkpoints.
FAILING = 0.2


def make_data(folder: Path) -> None:
    """Build graph and shards of the sample, and a minimal encoder."""
    source = REPOSITORY / "shards/sample"
    bali_ds(["graph", "build", "--rrf", str(source), "--out", str(folder / "graph")])
    bali_ds([
        "shards", "build", "--graph", str(folder / "graph"), "--corpus", f"pubtator:{source}/corpus.pubtator",
        "--tokenizer", str(source / "encoder"), "--validation", "0.05", "--shard-samples", "100",
        "--out", str(folder / "shards"),
    ])  # fmt: skip
    shutil.copytree(source / "encoder", folder / "encoder")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = json.loads((folder / "encoder/config.json").read_text())
    (folder / "encoder/config.json").write_text(json.dumps(config | shape))


def make_recipe(
    folder: Path,
    name: str,
    stage: int,
    steps: int,
    *,
    shards: str | None = None,
    retry_minutes: float = 0.5 * TIMEOUT_FACTOR,
    data_minutes: float = 30,
) -> Recipe:
    """Return the recipe of a run, with dropout."""
    return Recipe.model_validate(
        {
            "name": name,
            "runs": folder / "runs",
            "data": {"graph": folder / "graph", "shards": shards or str(folder / "shards"), "workers": 1},
            "text_encoder": {"path": str(folder / "encoder"), "weights": "random"},
            "optimizer": {"text_learning_rate": 1e-3, "graph_learning_rate": 1e-3},
            "batch": {"passages": 8},
            "steps": steps,
            "precision": "fp32",
            "deepspeed": REPOSITORY / f"ds_configs/zero{stage}.json",
            "checkpoints": {"every": EVERY, "retry_minutes": retry_minutes},
            "validation": {"every": 2 * EVERY, "passages": 16},
            "fault_tolerance": {"data_minutes": data_minutes},
            "log_every": 1,
        }
    )


def fails_sometimes(draw: random.Random) -> Callable[[int], bool]:
    """Return a function that says for each write whether a temporarily full disk fails it."""
    return lambda _: draw.random() < FAILING


def fails_after(last: int) -> Callable[[int], bool]:
    """Return a function that says whether a disk is full that has no space for checkpoints after a step."""
    return lambda step: step > last


def failing_disk(fails: Callable[[int], bool]) -> None:
    """Make this process's writes of checkpoint files fail for the steps for which `fails` returns true."""
    write = TorchCheckpointEngine.save

    def save(engine: TorchCheckpointEngine, state: object, path: str) -> None:
        if fails(int(Path(path).parent.name.partition("-")[2])):
            Path(path).write_bytes(b"half a file")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(engine, state, path)

    TorchCheckpointEngine.save = save


def rank(recipe: Recipe, log: Path, fails: Callable[[int], bool] | None) -> int:
    """Train as `launch/train.py` does."""
    if fails:
        failing_disk(fails)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    evaluating = recipe.directory / "evaluating"
    validate = loop.Validator.validate

    def marked_validate(*arguments: object) -> dict[str, float]:
        evaluating.touch()
        try:
            return validate(*arguments)  # type: ignore[arg-type]
        finally:
            evaluating.unlink(missing_ok=True)

    loop.Validator.validate = marked_validate  # type: ignore[method-assign,assignment]
    try:
        loop.train(recipe)
    except (InputError, RunEnded) as ended:
        print(ended)
        return exit_status(ended)
    return 0


def launcher(recipe: Recipe, log: Path, fails: Callable[[int], bool] | None) -> int:
    """Start the ranks, end all when one fails, and return the first failure."""
    os.setsid()
    ranks = set(fork_ranks(RANKS, rank, recipe, log, fails))
    failure, ended_at = 0, None
    while ranks:
        process, status = os.waitpid(-1, os.WNOHANG)
        if process:
            ranks.discard(process)
            failure = failure or os.waitstatus_to_exitcode(status)
            if failure and ended_at is None:
                ended_at = time.monotonic()
                signal_all(ranks, signal.SIGTERM)
        elif ended_at and time.monotonic() - ended_at > GRACE:
            signal_all(ranks, signal.SIGKILL)
        time.sleep(0.02)
    return abs(failure)


def signal_all(processes: set[int], number: int) -> None:
    """Send a signal to those that are still there."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


@dataclass
class Job:
    """One start of a run."""

    recipe: Recipe
    log: Path
    fails: Callable[[int], bool] | None = None
    group: int = 0
    started: float = field(default_factory=time.monotonic)
    begun: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self.group = fork(launcher, self.recipe, self.log, self.fails)

    def processes(self, kind: str) -> list[int]:
        """Return the processes of a kind: launcher, rank or worker; all for any other word."""
        found = []
        for process in psutil.process_iter(["ppid", "status"]):
            try:
                if os.getpgid(process.pid) != self.group or process.info["status"] == psutil.STATUS_ZOMBIE:
                    continue
            except ProcessLookupError:
                continue
            of = "launcher" if process.pid == self.group else "rank" if process.info["ppid"] == self.group else "worker"
            if kind in (of, "all"):
                found.append(process.pid)
        return found

    def over(self) -> bool:
        """Return whether the launcher has ended, and keep its status."""
        if not hasattr(self, "status"):
            process, status = os.waitpid(self.group, os.WNOHANG)
            if not process:
                return False
            self.status = os.waitstatus_to_exitcode(status)
        return True

    def wait(self) -> bool:
        """Return whether all processes end in time."""
        until = time.monotonic() + PATIENCE
        while not self.over() or self.processes("all"):
            if time.monotonic() > until:
                signal_all(set(self.processes("all")), signal.SIGKILL)
                while not self.over():
                    time.sleep(0.05)
                return False
            time.sleep(0.05)
        return True


def losses(run: Path) -> list[tuple[int, float]]:
    """Return the loss of every step."""
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def steps_taken(run: Path) -> int:
    """Return the last step in metrics.jsonl."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except ValueError:
            continue
    return 0


def appeared(path: Path, since: float) -> bool:
    """Return whether a path was made after a time; a killed job leaves its own behind."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime > since
    return False


def moment(job: Job, draw: random.Random, when: str, steps: int, start: float = 0) -> bool:
    """Wait for a random moment of a job; return whether it still runs then.

    Args:
        job: has just started.
        draw: random numbers.
        when: "start", at most `start` seconds later; "step", at most `steps` later; or the next "save" or "evaluation".
        steps: see `when`.
        start: see `when`.
    """
    run = job.recipe.directory
    goal = steps_taken(run) + draw.randint(1, max(1, steps))
    come = {
        "start": lambda: True,
        "step": lambda: steps_taken(run) >= goal,
        "save": lambda: appeared(run / "checkpoints/.writing", job.begun),
        "evaluation": lambda: appeared(run / "evaluating", job.begun),
    }[when]
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and not job.over() and not come():
        time.sleep(0.005)
    time.sleep(draw.uniform(0, start if when == "start" else 0.02))
    return not job.over()
