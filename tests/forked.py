"""Ranks as forks of one process that has imported everything, so that a job starts within a second.

As a program it is the process of a `tests.job_server.JobServer`.
"""

import os
import runpy
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

# Imports all that a rank needs. Nothing here starts a thread, so that forking is safe.
# DeepSpeed imports Muon, and with it torch's compiler, when the first ZeRO optimizer is made.
import deepspeed.runtime.zero.muon.muon_optimizer

import bali_ds.export.finalize
import bali_ds.training.trainer
from tests.ports import free_port


def fork(function: Callable[..., Any], *arguments: Any) -> int:
    """Run a function in a new process and return its process id. What the function returns is the exit status."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        status = function(*arguments) or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def fork_ranks(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[int]:
    """Fork the ranks of one job, each of which calls `function`; return their process ids."""
    shared = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}

    def rank(number: int) -> Any:
        os.environ.update(shared | {"RANK": str(number), "LOCAL_RANK": str(number), "DS_ACCELERATOR": "cpu"})
        return function(*arguments)

    return [fork(rank, number) for number in range(world_size)]


def run_forked(world_size: int, function: Callable[..., Any], *arguments: Any) -> None:
    """Run a job to its end.

    Raises:
        RuntimeError: a rank failed.
    """
    statuses = [
        os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in fork_ranks(world_size, function, *arguments)
    ]
    if any(statuses):
        raise RuntimeError(f"ranks ended with {statuses}")


def run_script(script: str, arguments: list[str]) -> None:
    """Run a script as this process's main program."""
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def serve(requests: Connection) -> None:
    """Run one job after another as they are requested, each in a process group of its own, until nobody is left to ask.

    The first answer says that everything is imported. A request is the arguments of `be_job`; answers are the job's
    process id at its start and its exit status.
    """
    requests.send(None)
    while True:
        try:
            request = requests.recv()
        except EOFError:
            return
        job = fork(be_job, requests, *request)
        requests.send(job)
        requests.send(os.waitstatus_to_exitcode(os.waitpid(job, 0)[1]))


def be_job(
    requests: Connection, world_size: int, script: str, arguments: list[str], log: str, environment: dict[str, str]
) -> None:
    """Run a script as ranks, with an environment of its own and output to a file."""
    os.setsid()
    requests.close()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(output, number)
    os.environ.clear()
    os.environ.update(environment)
    run_forked(world_size, run_script, script, arguments)


LOADED = (bali_ds.export.finalize, bali_ds.training.trainer, deepspeed.runtime.zero.muon.muon_optimizer)

if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
