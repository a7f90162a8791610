"""Trains on two ranks with one fault after another; writes how each run ended.

python tests/training/fault_injection_ranks.py RECIPE.json OUT GROUP
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import bali_ds.training.stability as stability
from bali_ds.checkpoint.manager import CheckpointManager
from bali_ds.checkpoint.marker import step_name
from bali_ds.config import CheckpointConfig, Recipe
from bali_ds.data.loader import WorkerKilledError
from bali_ds.errors import InputError, RunEnded, exit_status
from bali_ds.planning.run_data import RunData
from bali_ds.training.process_group import joined_ranks
from bali_ds.training.replay import replay
from bali_ds.training.trainer import train
from tests.engines import engine_of
from tests.forked import fork_ranks
from tests.training.cases import DAMAGES, STAGES
from tests.training.faults import Fault, before_step, fail, failing_writes, no_fault, scaled_loss


def train_as_rank(recipe: Recipe, log: Path, fault: Fault, resume: bool) -> int:
    """Be one rank, whose output goes to a log; return its exit status."""
    log.parent.mkdir(parents=True, exist_ok=True)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    fault()
    try:
        train(recipe, resume=resume)
    except (InputError, RunEnded) as ended:
        print(ended)
        return exit_status(ended)
    return 0


class Runs:
    """Runs of one recipe; "NAME/PART" is a later part of the run NAME with a log of its own."""

    def __init__(self, recipe: Recipe, out: Path) -> None:
        self.recipe, self.out = recipe, out
        self.ended: dict[str, list[int]] = {}

    def start(
        self,
        name: str,
        fault: Fault = no_fault,
        *,
        world_size: int = 2,
        stage: int = 1,
        resume: bool = True,
        **changes: Any,
    ) -> list[int]:
        """Start or resume a run with changes of its recipe; return the process ids of its ranks."""
        deepspeed = self.recipe.deepspeed.with_name(f"zero{stage}.json")
        values = self.recipe.model_dump() | {"name": name.partition("/")[0], "deepspeed": deepspeed} | changes
        log = self.out / f"logs/{name.replace('/', '-')}.txt"
        return fork_ranks(world_size, train_as_rank, Recipe.model_validate(values), log, fault, resume)

    def wait(self, name: str, ranks: list[int]) -> None:
        """Wait for the end of ranks; write their exit statuses."""
        self.ended[name] = [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks]
        (self.out / "ended.json").write_text(json.dumps(self.ended))

    def run(self, name: str, fault: Fault = no_fault, **options: Any) -> None:
        """Start or resume a run, and wait for its end."""
        self.wait(name, self.start(name, fault, **options))

    def directory(self, name: str) -> Path:
        return self.recipe.runs / name


def stops(runs: Runs) -> None:
    """A run that is interrupted and resumed on 2, 1 and 2 ranks at ZeRO 1, 3 and 2; and one with bad data."""
    runs.run("straight")
    killed = WorkerKilledError("a loader worker ended with status -9")
    runs.run("moved/2", before_step(3, fail(killed), of_rank=1))
    runs.run("moved/1", before_step(5, fail(killed)), world_size=1, stage=3)
    runs.run("moved/end", stage=2)
    runs.run("data", before_step(3, fail(InputError("train-000000.tar: is cut short")), of_rank=1))


def non_finite(runs: Runs) -> None:
    """Losses that are NaN, replays of such a step, and loss spikes."""
    nan = scaled_loss(4, float("nan"), of_rank=1)
    runs.run("nan", nan)
    for name, fault in {"replayed": no_fault, "replayed-nan": scaled_loss(4, float("nan"), of_rank=0)}.items():
        runs.wait(name, fork_ranks(1, write_replay, runs.directory("nan"), runs.out / f"{name}.json", fault))

    skip_one = {"skip_non_finite": 1}
    for stage in STAGES:
        runs.run(f"skip{stage}", nan, stage=stage, fault_tolerance=skip_one)
        runs.run(f"skip{stage}-bf16", nan, stage=stage, precision="bf16", fault_tolerance=skip_one)

    # resumed from a checkpoint before the skipped batch
    run = runs.directory("skip1")
    for later in (4, 6):
        shutil.rmtree(run / "checkpoints" / step_name(later))
    shutil.copy(run / "metrics.jsonl", run / "before.jsonl")
    runs.run("skip1/again", nan, fault_tolerance=skip_one)

    stability._SHORTEST_HISTORY = 4
    runs.run("spike", scaled_loss(6, 100.0, of_rank=0), steps=7, fault_tolerance={"spike": 20})


def write_replay(run: Path, out: Path, fault: Fault) -> None:
    fault()
    out.write_text(json.dumps(replay(run, 4)))


def disks(runs: Runs) -> None:
    """Saves that fail, and checkpoints that are damaged."""
    first_write = failing_writes(lambda number, _: number == 1)
    runs.run("full", first_write, checkpoints={"every": 2, "keep": 1, "keep_every": 3})
    runs.run("damaged", checkpoints={"every": 1, "keep": 5})
    results = runs.out / "damages.json"
    runs.wait("damages", fork_ranks(1, restore_damaged, runs.recipe, runs.directory("damaged"), results))


def last_checkpoint(runs: Runs) -> None:
    """Runs whose last checkpoint cannot be written."""

    def another_exists(_: int, file: Path) -> bool:
        return any(file.parents[2].glob("step-*"))

    def request_stop(_: int, file: Path) -> bool:
        (file.parents[3] / "stop").touch()
        return True

    only_last = {"every": 100, "retry_minutes": 0.3}
    runs.run("straight", checkpoints=only_last)
    runs.run("patient", failing_writes(lambda number, _: number <= 3), checkpoints=only_last)
    runs.run("full", failing_writes(lambda *_: True), checkpoints=only_last | {"retry_minutes": 0.02})
    runs.run("full/again", checkpoints=only_last)
    keep_one = {"every": 2, "keep": 1, "retry_minutes": 0.02}
    runs.run("one", failing_writes(another_exists), checkpoints=keep_one)
    runs.run("one/again", checkpoints=keep_one)
    runs.run("stopped", failing_writes(request_stop), checkpoints=only_last | {"retry_minutes": 10})


def two_jobs(runs: Runs) -> None:
    """Two jobs that train the same run, and a job after one that was killed."""
    runs.run("straight")
    end = runs.out / "end"

    def wait_for_end() -> None:
        while not end.exists():
            time.sleep(0.1)

    first_job = runs.start("shared", before_step(4, wait_for_end, of_rank=1))
    metrics = runs.directory("shared") / "metrics.jsonl"
    while not metrics.exists() or not metrics.stat().st_size:
        time.sleep(0.1)
    runs.run("shared/second")
    runs.run("shared/afresh", resume=False)
    end.touch()
    runs.wait("shared", first_job)
    runs.run("killed", before_step(4, lambda: os.kill(os.getpid(), signal.SIGKILL)))
    runs.run("killed/again")


def silence(runs: Runs) -> None:
    """Ranks that stop moving, for good or for a while."""

    def freeze() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    for rank in range(2):
        ranks = runs.start(f"frozen{rank}", before_step(3, freeze, of_rank=rank), fault_tolerance={"host_minutes": 0.2})
        runs.wait(f"frozen{rank}", [ranks[1 - rank]])
        os.kill(ranks[rank], signal.SIGKILL)
        os.waitpid(ranks[rank], 0)

    suspended = runs.start("suspended", before_step(3, freeze), fault_tolerance={"host_minutes": 0.1})
    for rank in suspended:
        os.waitpid(rank, os.WUNTRACED)
    time.sleep(12)
    for rank in suspended:
        os.kill(rank, signal.SIGCONT)
    runs.wait("suspended", suspended)

    slow = before_step(3, lambda: time.sleep(8), of_rank=1)
    runs.run("slow", slow, fault_tolerance={"step_minutes": 0.05})


def restore_damaged(recipe: Recipe, run: Path, out: Path) -> None:
    """Damage the newest one, two or three checkpoints in many ways; write which step is restored, with what warnings.

    Each result is [kind of damage, further damaged checkpoints, restored step, warnings].
    """
    data, random_source = RunData.open(recipe), random.Random(7)
    results = []
    with joined_ranks() as ranks:
        engine = engine_of(recipe, data, world_size=1)
        identity = {"data": data.shards.fingerprint, "world size": 1, "ZeRO stage": 0}
        for number in range(50):
            copy = run.with_name("copy")
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(run / "checkpoints", copy)
            kind, others = DAMAGES[number % len(DAMAGES)], number % 3
            for newest in sorted(copy.iterdir())[-1 - others :]:
                damage(newest, kind, random_source)
            warnings: list[str] = []
            checkpoints = CheckpointManager(copy, ranks, CheckpointConfig(), identity=identity)
            checkpoints.warn = warnings.append  # type: ignore[method-assign]
            progress = checkpoints.restore(engine)
            results.append([kind, others, progress.step if progress else None, warnings])
    out.write_text(json.dumps(results))


def damage(checkpoint: Path, kind: str, random_source: random.Random) -> None:
    if kind == "marker":
        (checkpoint / "COMPLETE.json").unlink()
        return
    file = random_source.choice(sorted(checkpoint.glob("*.pt")))
    if kind == "missing":
        file.unlink()
    elif kind == "truncated":
        os.truncate(file, random_source.randrange(file.stat().st_size))
    else:
        content = bytearray(file.read_bytes())
        content[random_source.randrange(len(content))] ^= 1 << random_source.randrange(8)
        file.write_bytes(content)


GROUPS = {
    "stops": stops,
    "non_finite": non_finite,
    "disks": disks,
    "last_checkpoint": last_checkpoint,
    "two_jobs": two_jobs,
    "silence": silence,
}


def main() -> None:
    recipe = Recipe.model_validate_json(Path(sys.argv[1]).read_text())
    GROUPS[sys.argv[3]](Runs(recipe, Path(sys.argv[2])))


main()
