"""Lets runs of two ranks meet one mishap after another; writes how each ended."""

import errno
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

import bali_ds.training.stability as spikes
from bali_ds.checkpoint.manager import CheckpointManager
from bali_ds.config import CheckpointConfig, Recipe
from bali_ds.data.loader import Loader, WorkerKilledError
from bali_ds.errors import InputError, RunEnded, exit_status
from bali_ds.model.aligner import Aligner
from bali_ds.model.build_model import build_aligner
from bali_ds.planning.batch_plan import plan_batches
from bali_ds.training.engine import build_engine, deepspeed_settings
from bali_ds.training.joining import joined_ranks
from bali_ds.training.replay import replay
from bali_ds.training.run_directory import RunData
from bali_ds.training.trainer import train
from tests.forked import fork_ranks
from tests.training.cases import DAMAGES, STAGES

BATCH = 8


def job(recipe: Recipe, log: Path, mishap: Callable[[], None], resume: bool) -> int:
    """Train as `launch/train.py` does, with a mishap prepared."""
    log.parent.mkdir(parents=True, exist_ok=True)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    mishap()
    try:
        train(recipe, resume=resume)
    except (InputError, RunEnded) as ended:
        print(ended)
        return exit_status(ended)
    return 0


def before_samples(step: int, action: Callable[[], None], *, of_rank: int | None = None) -> Callable[[], None]:
    """When a rank asks for the samples of a step (the first is 1), act."""

    def prepare() -> None:
        following = Loader.__next__

        def next_step(loader: Loader) -> Any:
            found = following(loader)
            if found.position_after.samples_seen == step * BATCH and of_rank in (None, int(os.environ["RANK"])):
                action()
            return found

        Loader.__next__ = next_step  # type: ignore[method-assign]

    return prepare


def scaled_loss(step: int, factor: float, *, of_rank: int) -> Callable[[], None]:
    """Multiply the loss that one rank sees by a factor when it computes with the samples of a step."""
    last: list[int] = []

    def prepare() -> None:
        following, forward = Loader.__next__, Aligner.forward

        def next_step(loader: Loader) -> Any:
            found = following(loader)
            last[:] = [found.position_after.samples_seen]
            return found

        def scaled(aligner: Aligner, micro_batches: Any) -> Any:
            loss, parts = forward(aligner, micro_batches)
            if last == [step * BATCH] and int(os.environ["RANK"]) == of_rank and torch.is_grad_enabled():
                loss = loss * factor
                parts["loss"] = loss.detach()
            return loss, parts

        Loader.__next__, Aligner.forward = next_step, scaled  # type: ignore[method-assign]

    return prepare


def fail(error: Exception) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


def full_disk() -> None:
    """The first file of an optimizer that rank 1 writes does not fit."""
    if os.environ["RANK"] != "1":
        return
    write, writes = TorchCheckpointEngine.save, []

    def save(engine: Any, state: Any, path: str) -> None:
        writes.append(path)
        if len(writes) == 1:
            Path(path).write_bytes(b"half a file")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(engine, state, path)

    TorchCheckpointEngine.save = save


def failing_writes(fails: Callable[[int, Path], bool]) -> Callable[[], None]:
    """Let rank 1's writes fail as on a full disk: `fails` gets the number of the write and the file's path."""

    def prepare() -> None:
        write, writes = TorchCheckpointEngine.save, []

        def save(engine: Any, state: Any, path: str) -> None:
            writes.append(path)
            if os.environ["RANK"] == "1" and fails(len(writes), Path(path)):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(engine, state, path)

        TorchCheckpointEngine.save = save

    return prepare


def published(file: Path) -> bool:
    """Whether the run of a checkpoint file in writing has a complete checkpoint."""
    return any(file.parents[2].glob("step-*"))


def stop_while_full(_: int, file: Path) -> bool:
    (file.parents[3] / "stop").touch()
    return True


def nothing() -> None:
    pass


class Mishaps:
    """Runs of one recipe, each under a name of its own."""

    def __init__(self, recipe: Recipe, out: Path) -> None:
        self.recipe, self.out = recipe, out
        self.ended: dict[str, list[int]] = {}

    def run(self, name: str, mishap: Callable[[], None] = nothing, *, world_size: int = 2, **changes: Any) -> None:
        """Run (or resume) under a name to the end; keep the exit statuses of its ranks."""
        started = self.start(name, mishap, world_size=world_size, **changes)
        self.ended[name] = [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in started]
        self.save()

    def start(self, name: str, mishap: Callable[[], None], *, world_size: int = 2, **changes: Any) -> list[int]:
        stage = changes.pop("stage", 1)
        resume = changes.pop("resume", True)
        deepspeed = self.recipe.deepspeed.with_name(f"zero{stage}.json")
        values = self.recipe.model_dump() | {"name": name.partition("/")[0], "deepspeed": deepspeed} | changes
        recipe = Recipe.model_validate(values)
        return fork_ranks(world_size, job, recipe, self.out / f"logs/{name.replace('/', '-')}.txt", mishap, resume)

    def save(self) -> None:
        (self.out / "ended.json").write_text(json.dumps(self.ended))

    def directory(self, name: str) -> Path:
        return self.recipe.runs / name


def stops(mishaps: Mishaps) -> None:
    """One run on 2, 1 and 2 ranks at ZeRO 1, 3 and 2."""
    mishaps.run("straight")
    dead = WorkerKilledError("a loader worker ended with status -9")
    mishaps.run("moved/2", before_samples(3, fail(dead), of_rank=1))
    mishaps.run("moved/1", before_samples(5, fail(dead)), world_size=1, stage=3)
    mishaps.run("moved/end", stage=2)
    mishaps.run("data", before_samples(3, fail(InputError("train-000000.tar: is cut short")), of_rank=1))


def numbers(mishaps: Mishaps) -> None:
    """Losses that are no numbers, or jump."""
    poison = scaled_loss(4, float("nan"), of_rank=1)
    mishaps.run("nan", poison)
    for name, mishap in {"sound": nothing, "poisoned": scaled_loss(4, float("nan"), of_rank=0)}.items():
        (rank,) = fork_ranks(1, replay_again, mishaps.directory("nan"), mishaps.out / f"{name}.json", mishap)
        mishaps.ended[name] = [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1])]
    for stage in STAGES:
        mishaps.run(f"skip{stage}", poison, stage=stage, fault_tolerance={"skip_non_finite": 1})
    mishaps.run("skip-bf16", poison, stage=0, precision="bf16", fault_tolerance={"skip_non_finite": 1})
    for later in (4, 6):
        shutil.rmtree(mishaps.directory("skip1") / f"checkpoints/step-{later:08d}")
    shutil.copy(mishaps.directory("skip1") / "metrics.jsonl", mishaps.directory("skip1") / "before.jsonl")
    mishaps.run("skip1/again", poison, fault_tolerance={"skip_non_finite": 1})
    spikes._FEWEST = 4
    mishaps.run("spike", scaled_loss(6, 100.0, of_rank=0), steps=7, fault_tolerance={"spike": 20})


def replay_again(run: Path, out: Path, mishap: Callable[[], None]) -> None:
    mishap()
    out.write_text(json.dumps(replay(run, 4)))


def disks(mishaps: Mishaps) -> None:
    """Saves that fail, checkpoints that rot."""
    mishaps.run("full", full_disk, checkpoints={"every": 2, "keep": 1, "keep_every": 3})
    mishaps.run("rot", checkpoints={"every": 1, "keep": 5})
    rank = fork_ranks(1, restore_damaged, mishaps.recipe, mishaps.directory("rot"), mishaps.out / "damages.json")
    mishaps.ended["damages"] = [os.waitstatus_to_exitcode(os.waitpid(rank[0], 0)[1])]
    mishaps.save()


def last(mishaps: Mishaps) -> None:
    """Runs whose last checkpoint cannot be written."""
    only = {"every": 100, "retry_minutes": 0.5}
    mishaps.run("straight", checkpoints=only)
    mishaps.run("patient", failing_writes(lambda number, _: number <= 3), checkpoints=only)
    full = failing_writes(lambda *_: True)
    mishaps.run("full", full, checkpoints=only | {"retry_minutes": 0.02})
    mishaps.run("full/again", checkpoints=only)
    one = {"every": 2, "keep": 1, "retry_minutes": 0.02}
    mishaps.run("one", failing_writes(lambda _, file: published(file)), checkpoints=one)
    mishaps.run("one/again", checkpoints=one)
    mishaps.run("stopped", failing_writes(stop_while_full), checkpoints=only | {"retry_minutes": 10})


def twins(mishaps: Mishaps) -> None:
    """Two jobs of one run."""
    mishaps.run("straight")
    end = mishaps.out / "end"

    def await_end() -> None:
        while not end.exists():
            time.sleep(0.1)

    first = mishaps.start("twin", before_samples(4, await_end, of_rank=1))
    metrics = mishaps.directory("twin") / "metrics.jsonl"
    while not metrics.exists() or not metrics.stat().st_size:
        time.sleep(0.1)
    mishaps.run("twin/second")
    mishaps.run("twin/afresh", resume=False)
    end.touch()
    mishaps.ended["twin"] = [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in first]
    killed = mishaps.start("killed", before_samples(4, lambda: os.kill(os.getpid(), signal.SIGKILL)))
    mishaps.ended["killed"] = [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in killed]
    mishaps.run("killed/again")


def restore_damaged(recipe: Recipe, run: Path, out: Path) -> None:
    """Damage the newest checkpoint in many ways and write down to which one a restore falls back."""
    data = RunData.open(recipe)
    draw = random.Random(7)
    results = []
    with joined_ranks() as ranks:
        settings = deepspeed_settings(recipe, plan_batches(recipe, 1, len(data.shards.split("train"))))
        engine = build_engine(build_aligner(recipe, 2 * data.graph.num_relations), recipe, settings)
        identity = {"data": data.shards.fingerprint, "world size": 1, "ZeRO stage": 0}
        for number in range(50):
            copy = run.with_name("damaged")
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(run / "checkpoints", copy)
            kind = DAMAGES[number % len(DAMAGES)]
            for newest in sorted(copy.iterdir())[-1 - number % 3 :]:
                damage(newest, kind, draw)
            said: list[str] = []
            checkpoints = CheckpointManager(copy, ranks, CheckpointConfig(), identity=identity)
            checkpoints.warn = said.append  # type: ignore[method-assign]
            progress = checkpoints.restore(engine)
            results.append([kind, number % 3, progress.step if progress else None, said])
    out.write_text(json.dumps(results))


def damage(checkpoint: Path, kind: str, draw: random.Random) -> None:
    if kind == "marker":
        (checkpoint / "COMPLETE.json").unlink()
        return
    file = draw.choice(sorted(checkpoint.glob("*.pt")))
    if kind == "missing":
        file.unlink()
    elif kind == "truncated":
        os.truncate(file, draw.randrange(file.stat().st_size))
    else:
        content = bytearray(file.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(content)


def silence(mishaps: Mishaps) -> None:
    """Ranks that stop moving."""
    freeze = [before_samples(3, lambda: os.kill(os.getpid(), signal.SIGSTOP), of_rank=rank) for rank in range(2)]
    for rank in range(2):
        name = f"frozen{rank}"
        started = mishaps.start(name, freeze[rank], fault_tolerance={"host_minutes": 0.2})
        status = os.waitstatus_to_exitcode(os.waitpid(started[1 - rank], 0)[1])
        os.kill(started[rank], signal.SIGKILL)
        os.waitpid(started[rank], 0)
        mishaps.ended[name] = [status]
    everybody = before_samples(3, lambda: os.kill(os.getpid(), signal.SIGSTOP))
    suspended = mishaps.start("suspended", everybody, fault_tolerance={"host_minutes": 0.1})
    for rank in suspended:
        os.waitpid(rank, os.WUNTRACED)
    time.sleep(12)
    for rank in suspended:
        os.kill(rank, signal.SIGCONT)
    mishaps.ended["suspended"] = [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in suspended]
    mishaps.run("slow", before_samples(3, lambda: time.sleep(8), of_rank=1), fault_tolerance={"step_minutes": 0.05})


def main() -> None:
    recipe = Recipe.model_validate_json(Path(sys.argv[1]).read_text())
    mishaps = Mishaps(recipe, Path(sys.argv[2]))
    for name in sys.argv[3:]:
        {"stops": stops, "numbers": numbers, "disks": disks, "silence": silence, "last": last, "twins": twins}[name](
            mishaps
        )


main()
