"""Runs `launch/train.py` as two ranks that meet one fault after another; writes how each run ended."""

import importlib.util
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import psutil

import bali_ds.export.finalize
import bali_ds.training.trainer as loop
from bali_ds.data.batch_sampler import BatchSampler
from bali_ds.data.loader import Loader
from bali_ds.model.aligner import Aligner
from bali_ds.training.run_directory import RunData
from tests.conftest import REPOSITORY
from tests.forked import fork_ranks

BATCH = 8
Fault = Callable[[], None]


def nothing() -> None:
    pass


def train_script(arguments: list[list[str]], folders: list[Path], log: Path, fault: Fault) -> int:
    """Be one rank: its own arguments, its own folder (as on its own host), its own log."""
    rank = int(os.environ["RANK"])
    output = os.open(f"{log}-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(folders[rank])
    sys.argv = ["launch/train.py", *arguments[rank]]
    spec = importlib.util.spec_from_file_location("train_script", REPOSITORY / "launch/train.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    fault()
    return int(script._status())


def on_rank(rank: int, fault: Fault) -> Fault:
    """Prepare a fault on one rank."""

    def prepare() -> None:
        if os.environ["RANK"] == str(rank):
            fault()

    return prepare


def failing(target: Any, name: str, action: Callable[[], None], calls: int = 1) -> Fault:
    """Act in the place of a function's `calls`-th call and of all later ones."""

    def prepare() -> None:
        function, called = getattr(target, name), [0]

        def replaced(*arguments: Any, **named: Any) -> Any:
            called[0] += 1
            if called[0] >= calls:
                action()
            return function(*arguments, **named)

        setattr(target, name, replaced)

    return prepare


def raise_value_error() -> None:
    raise ValueError("this value was not foreseen")


def hang() -> None:
    time.sleep(3600)


def signal_self(number: signal.Signals) -> Callable[[], None]:
    def action() -> None:
        os.kill(os.getpid(), number)
        time.sleep(0.1)

    return action


def absent(rank: int) -> Fault:
    """One rank never comes; the other does not wait as long as usual."""

    def prepare() -> None:
        if os.environ["RANK"] == str(rank):
            os._exit(0)
        join = deepspeed.init_distributed
        deepspeed.init_distributed = partial(join, timeout=timedelta(seconds=2))

    return prepare


def signal_workers(number: signal.Signals, note: Path) -> Callable[[], None]:
    """Send a signal to this rank's loader workers, once."""

    def action() -> None:
        if not note.exists():
            for worker in psutil.Process().children():
                worker.send_signal(number)
            note.touch()

    return action


def failing_workers(folder: Path) -> Fault:
    """Have the worker processes of this rank raise once they have made some steps."""

    def prepare() -> None:
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(
            "import sys\n"
            "if 'bali_ds.data.worker' in sys.orig_argv:\n"
            "    import bali_ds.data.batch_sampler as steps\n"
            "    take = steps.BatchSampler.take\n"
            "    def take_or_fail(made, numbers):\n"
            "        if numbers[0]:\n"
            "            raise ValueError('this value was not foreseen')\n"
            "        return take(made, numbers)\n"
            "    steps.BatchSampler.take = take_or_fail\n"
        )
        os.environ["PYTHONPATH"] = f"{os.environ['PYTHONPATH']}{os.pathsep}{folder}"

    return prepare


class Runs:
    """Runs of one recipe on two hosts, which are folders with data of their own."""

    def __init__(self, out: Path) -> None:
        self.out, self.ended = out, dict[str, Any]()

    def run(
        self,
        name: str,
        fault: Fault = nothing,
        *,
        changes: tuple[str, ...] = (),
        changes_of_rank_1: tuple[str, ...] = (),
        hosts: tuple[str, str] = ("host", "host"),
        config_of_rank_1: str = "recipe.yaml",
        meanwhile: Callable[[list[int]], None] | None = None,
    ) -> None:
        """Run to the end; keep the exit statuses and the seconds since `meanwhile` was done."""
        arguments = [
            ["--config", config, f"name={name}", *changes, *of_rank]
            for config, of_rank in (("recipe.yaml", ()), (config_of_rank_1, changes_of_rank_1))
        ]
        folders = [self.out / host for host in hosts]
        ranks = fork_ranks(2, train_script, arguments, folders, self.out / name, fault)
        if meanwhile:
            meanwhile(ranks)
        begun = time.monotonic()
        killer = threading.Timer(120, lambda: [os.kill(rank, signal.SIGKILL) for rank in ranks])
        killer.start()
        statuses = [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks]
        killer.cancel()
        killer.join()
        self.ended[name] = {"statuses": statuses, "seconds": time.monotonic() - begun}
        (self.out / "ended.json").write_text(json.dumps(self.ended))


def start_up(runs: Runs) -> None:
    """Faults before the first step."""
    runs.run("shards", hosts=("host", "host-with-other-shards"))
    runs.run("seed", changes_of_rank_1=("seed=7",))
    runs.run("alike", changes=("batch.passages=15",))
    runs.run("config", config_of_rank_1="missing.yaml")
    runs.run("data", hosts=("host", "host-without-shards"))
    runs.run("model", on_rank(1, failing(loop, "build_aligner", raise_value_error)))
    runs.run("engine", on_rank(1, failing(loop, "build_engine", raise_value_error)))
    runs.run("engine0", on_rank(0, failing(loop, "build_engine", raise_value_error)))
    runs.run("signal", on_rank(1, failing(loop, "build_aligner", signal_self(signal.SIGTERM))))
    runs.run("killed-early", on_rank(1, failing(RunData, "open", signal_self(signal.SIGKILL))))
    for rank in range(2):
        runs.run(f"absent{rank}", absent(rank))
    # a directory that only rank 0 looks at, made by the run before
    runs.run("directory", changes=("name=signal", "seed=8"))


def steps(runs: Runs) -> None:
    """Faults of ranks and loader workers between steps."""
    runs.run("forward", on_rank(1, failing(Aligner, "forward", raise_value_error, calls=3)))
    runs.run("killed", on_rank(1, failing(Aligner, "forward", signal_self(signal.SIGKILL), calls=3)))
    runs.run("in-process", on_rank(1, failing(BatchSampler, "take", raise_value_error, calls=2)))
    with_worker = ("data.workers=1",)
    runs.run("worker-fails", on_rank(1, failing_workers(runs.out / "site")), changes=with_worker)
    for number, name in ((signal.SIGKILL, "worker-killed"), (signal.SIGSEGV, "worker-crashes")):
        action = signal_workers(number, runs.out / f"{name}.note")
        runs.run(name, on_rank(1, failing(Loader, "__next__", action, calls=3)), changes=with_worker)


def waits(runs: Runs) -> None:
    """Data that never comes."""

    def terminate_rank_0(note: Path) -> Callable[[list[int]], None]:
        def action(ranks: list[int]) -> None:
            while not note.exists():
                time.sleep(0.1)
            time.sleep(4)  # until what was made ahead is used up
            os.kill(ranks[0], signal.SIGTERM)

        return action

    def hung(name: str) -> Fault:
        action = signal_workers(signal.SIGSTOP, runs.out / f"{name}.note")
        return on_rank(1, failing(Loader, "__next__", action, calls=3))

    worker, short = "data.workers=1", "fault_tolerance.data_minutes=0.1"
    runs.run("sigterm", hung("sigterm"), changes=(worker,), meanwhile=terminate_rank_0(runs.out / "sigterm.note"))
    runs.run("deadline", hung("deadline"), changes=(worker, short))
    runs.run("max-minutes", hung("max-minutes"), changes=(worker, "fault_tolerance.max_minutes=0.2"))
    runs.run("deadline-in-process", on_rank(1, failing(BatchSampler, "take", hang, calls=2)), changes=(short,))


LOADED = bali_ds.export.finalize


def main() -> None:
    runs = Runs(Path(sys.argv[1]))
    for name in sys.argv[2:]:
        {"start_up": start_up, "steps": steps, "waits": waits}[name](runs)


main()
