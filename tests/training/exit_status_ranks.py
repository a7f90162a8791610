"""Runs the training command as two ranks with one fault after another; writes how each run ended.

python tests/training/exit_status_ranks.py OUT GROUP, where OUT holds the directories of two hosts.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bali_ds.export.finalize
import bali_ds.training.trainer as trainer
from bali_ds.cli.train import main_status
from bali_ds.data.batch_sampler import BatchSampler
from bali_ds.data.loader import Loader
from bali_ds.model.aligner import Aligner
from bali_ds.planning.run_data import RunData
from tests.forked import fork_ranks
from tests.training.faults import (
    Fault,
    before_call,
    failing_workers,
    full_disk,
    hang,
    missing_rank,
    no_fault,
    on_rank,
    raise_value_error,
    signal_self,
    signal_workers,
    truncate_shards,
)


def train_as_rank(arguments: list[list[str]], hosts: list[Path], log: Path, fault: Fault) -> int:
    """Be one rank, with arguments, a working directory (as on its own host) and a log of its own."""
    rank = int(os.environ["RANK"])
    output = os.open(f"{log}-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(hosts[rank])
    fault()
    return main_status(arguments[rank])


class Runs:
    """Runs of one recipe on two hosts, which are directories with data of their own."""

    def __init__(self, out: Path) -> None:
        self.out, self.ended = out, dict[str, Any]()

    def run(
        self,
        name: str,
        fault: Fault = no_fault,
        *,
        changes: tuple[str, ...] = (),
        changes_of_rank_1: tuple[str, ...] = (),
        hosts: tuple[str, str] = ("host", "host"),
        config_of_rank_1: str = "recipe.yaml",
        meanwhile: Callable[[list[int]], None] | None = None,
    ) -> None:
        """Run to the end; keep the exit statuses and the seconds since `meanwhile` returned."""
        arguments = [
            ["--config", config, f"name={name}", *changes, *of_rank]
            for config, of_rank in (("recipe.yaml", ()), (config_of_rank_1, changes_of_rank_1))
        ]
        directories = [self.out / host for host in hosts]
        ranks = fork_ranks(2, train_as_rank, arguments, directories, self.out / name, fault)
        if meanwhile:
            meanwhile(ranks)
        begin = time.monotonic()
        killer = threading.Timer(120, lambda: [os.kill(rank, signal.SIGKILL) for rank in ranks])
        killer.start()
        statuses = [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks]
        killer.cancel()
        killer.join()
        self.ended[name] = {"statuses": statuses, "seconds": time.monotonic() - begin}
        (self.out / "ended.json").write_text(json.dumps(self.ended))


def start_up(runs: Runs) -> None:
    """Faults before the first step."""
    runs.run("shards", hosts=("host", "host-with-other-shards"))
    runs.run("seed", changes_of_rank_1=("seed=7",))
    runs.run("full-disk", full_disk)
    runs.run("alike", changes=("batch.passages=15",))
    runs.run("config", config_of_rank_1="missing.yaml")
    runs.run("data", hosts=("host", "host-without-shards"))
    runs.run("model", on_rank(1, before_call(trainer, "build_aligner", raise_value_error)))
    runs.run("engine", on_rank(1, before_call(trainer, "build_engine", raise_value_error)))
    runs.run("engine0", on_rank(0, before_call(trainer, "build_engine", raise_value_error)))
    runs.run("signal", on_rank(1, before_call(trainer, "build_aligner", signal_self(signal.SIGTERM))))
    runs.run("killed-early", on_rank(1, before_call(RunData, "open", signal_self(signal.SIGKILL))))
    for rank in range(2):
        runs.run(f"missing{rank}", missing_rank(rank))
    # only rank 0 reads the directory of a run, here of the run "signal" above
    runs.run("directory", changes=("name=signal", "seed=8"))


def steps(runs: Runs) -> None:
    """Faults of ranks and loader workers between steps."""
    runs.run("forward", on_rank(1, before_call(Aligner, "forward", raise_value_error, calls=3)))
    runs.run("killed", on_rank(1, before_call(Aligner, "forward", signal_self(signal.SIGKILL), calls=3)))
    runs.run("in-process", on_rank(1, before_call(BatchSampler, "take", raise_value_error, calls=2)))
    cut = on_rank(1, before_call(BatchSampler, "take", truncate_shards, calls=2))
    runs.run("truncated", cut, hosts=("host", "host-with-a-copy"))
    with_worker = ("data.workers=1",)
    runs.run("worker-fails", on_rank(1, failing_workers(runs.out / "site")), changes=with_worker)
    for number, name in ((signal.SIGKILL, "worker-killed"), (signal.SIGSEGV, "worker-crashes")):
        action = signal_workers(number, runs.out / f"{name}.marker")
        runs.run(name, on_rank(1, before_call(Loader, "__next__", action, calls=3)), changes=with_worker)


def waits(runs: Runs) -> None:
    """Data that never arrive."""

    def stopped_workers(name: str) -> Fault:
        action = signal_workers(signal.SIGSTOP, runs.out / f"{name}.marker")
        return on_rank(1, before_call(Loader, "__next__", action, calls=3))

    def terminate_rank_0(ranks: list[int]) -> None:
        while not (runs.out / "sigterm.marker").exists():
            time.sleep(0.1)
        time.sleep(4)  # until the prefetched steps are used up
        os.kill(ranks[0], signal.SIGTERM)

    worker, short = "data.workers=1", "fault_tolerance.data_minutes=0.1"
    runs.run("sigterm", stopped_workers("sigterm"), changes=(worker,), meanwhile=terminate_rank_0)
    runs.run("deadline", stopped_workers("deadline"), changes=(worker, short))
    limit = "fault_tolerance.max_minutes=0.2"
    runs.run("max-minutes", stopped_workers("max-minutes"), changes=(worker, limit))
    runs.run("deadline-in-process", on_rank(1, before_call(BatchSampler, "take", hang, calls=2)), changes=(short,))


IMPORTED_BEFORE_FORKS = bali_ds.export.finalize
GROUPS = {"start_up": start_up, "steps": steps, "waits": waits}


def main() -> None:
    GROUPS[sys.argv[2]](Runs(Path(sys.argv[1])))


main()
