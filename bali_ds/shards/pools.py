"""Pools that run the tasks of a build: in this process, in processes of this host, or on the ranks of an MPI job."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, Protocol

from bali_ds.errors import InputError
from bali_ds.progress_bar import progress_bar
from bali_ds.shards.assembly import part_table


class Pool(Protocol):
    """Runs a function for each argument tuple and yields (position of the tuple, result) as tasks complete."""

    def __call__(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Start the tasks in order as workers become free."""
        ...


@contextmanager
def open_pool(workers: int) -> Iterator[Pool]:
    """Yield a pool of processes on this host, or of this process alone for one worker."""
    if workers == 1:
        yield _serial_pool
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    context = get_context("forkserver")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_exit_with_builder) as executor:
        yield _process_pool(executor)


@contextmanager
def open_mpi_pool() -> Iterator[Pool | None]:
    """Yield a pool over the ranks of the MPI job on rank 0; yield None on the others once all tasks are done.

    Rank 0 distributes the tasks and runs tasks itself while the other ranks are busy.
    """
    from mpi4py import MPI
    from mpi4py.futures import MPICommExecutor

    if MPI.COMM_WORLD.size == 1:
        yield _serial_pool
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _exit_with_launcher()
    with MPICommExecutor() as executor:
        yield None if executor is None else _mpi_pool(executor)


def _serial_pool(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
    return ((number, function(*argument)) for number, argument in enumerate(arguments))


def _process_pool(executor: Any) -> Pool:
    def run(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        numbers: dict[Future[Any], int] = {}
        try:
            numbers.update((executor.submit(function, *argument), number) for number, argument in enumerate(arguments))
            for future in as_completed(numbers):
                yield numbers[future], future.result()
        except (BrokenProcessPool, EOFError, ConnectionError) as error:  # the last two if the fork server is gone
            raise InputError(
                "a worker process died, perhaps out of memory; run the command again with fewer --workers to resume"
            ) from error
        finally:
            for future in numbers:
                future.cancel()

    return run


def _mpi_pool(executor: Any) -> Pool:
    """Return a pool of the executor's workers and this process, which takes the last task that no worker has begun."""

    def run(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        pending: dict[int, Future[Any]] = {
            number: executor.submit(function, *argument) for number, argument in enumerate(arguments)
        }
        try:
            while pending:
                own = next((number for number in reversed(pending) if pending[number].cancel()), None)
                if own is not None:
                    del pending[own]
                    yield own, function(*arguments[own])
                else:
                    wait(pending.values(), return_when=FIRST_COMPLETED)
                for number in [number for number, future in pending.items() if future.done()]:
                    yield number, pending.pop(number).result()
        finally:
            for future in pending.values():
                future.cancel()

    return run


def _exit_with_builder() -> None:
    """End this worker when its builder is gone; its parent is the fork server, which lives as long as its workers."""
    builder = parent_process()
    if builder is not None:
        _exit_after(builder.join)


def _exit_with_launcher() -> None:
    """End this rank when its launcher is gone; otherwise it would wait for tasks forever."""
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(0.5)

    _exit_after(watch)


def _exit_after(wait_for: Callable[[], None]) -> None:
    def watch() -> None:
        wait_for()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class BuildProgress:
    """Progress bar over the bytes of the inputs, with documents per second."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = sizes
        self._documents = 0
        self._start = time.monotonic()
        self._bar = progress_bar("documents", sum(sizes), "B", unit_scale=True)

    def done(self, number: int, part: Path) -> None:
        """Add the part of one input."""
        if part.is_dir():
            self._documents += len(part_table(part, "documents"))
        rate = self._documents / max(time.monotonic() - self._start, 1e-9)
        self._bar.set_postfix_str(f"{self._documents} documents, {rate:.0f}/s", refresh=False)
        self._bar.update(self._sizes[number])

    def close(self) -> None:
        """Close the bar and keep its last line."""
        self._bar.close()
