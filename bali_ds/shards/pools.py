"""Where tasks of a build run: in this process, in processes of this host, or on the ranks of an MPI job."""

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

import numpy as np
from tqdm import tqdm

from bali_ds.errors import InputError


class Pool(Protocol):
    """Runs a function once for each argument tuple and yields (number of the tuple, result) as they are done."""

    def __call__(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Start the tasks in order, as workers come free."""
        ...


@contextmanager
def open_pool(workers: int) -> Iterator[Pool]:
    """Yield a pool of processes on this host; of this process alone for one worker."""
    if workers == 1:
        yield _in_turn
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    context = get_context("forkserver")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_builder) as executor:
        yield _submitter(executor)


@contextmanager
def open_mpi_pool() -> Iterator[Pool | None]:
    """Yield a pool over the ranks of the MPI job to rank 0, None to the others once they have done their share.

    Rank 0 hands the tasks out and, while others are busy, takes tasks itself.
    """
    from mpi4py import MPI
    from mpi4py.futures import MPICommExecutor

    if MPI.COMM_WORLD.size == 1:
        yield _in_turn
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _end_with_launcher()
    with MPICommExecutor() as executor:
        yield None if executor is None else _sharer(executor)


def _in_turn(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
    return ((number, function(*argument)) for number, argument in enumerate(arguments))


def _submitter(executor: Any) -> Pool:
    def run(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        numbers: dict[Future[Any], int] = {}
        try:
            numbers.update((executor.submit(function, *argument), number) for number, argument in enumerate(arguments))
            for future in as_completed(numbers):
                yield numbers[future], future.result()
        except (BrokenProcessPool, EOFError, ConnectionError) as error:  # the last two where the fork server is gone
            raise InputError(
                "a worker process died (out of memory?); run the same command again with fewer --workers, it goes on"
            ) from error
        finally:
            for future in numbers:
                future.cancel()

    return run


def _sharer(executor: Any) -> Pool:
    """Return a pool of the executor's workers and this process: it takes the last task that no worker has begun."""

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


def _end_with_builder() -> None:
    """End this worker when its builder is gone. Its parent is the fork server, which lives as long as its workers."""
    builder = parent_process()
    if builder is not None:
        _end_after(builder.join)


def _end_with_launcher() -> None:
    """End this rank when what launched it is gone: the others would wait for tasks for ever."""
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(0.5)

    _end_after(watch)


def _end_after(wait_for: Callable[[], None]) -> None:
    def watch() -> None:
        wait_for()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class BuildProgress:
    """A bar over the bytes of the inputs, with documents a second; updated as parts are done."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = sizes
        self._documents = 0
        self._start = time.monotonic()
        self._bar = tqdm(
            total=sum(sizes), unit="B", unit_scale=True, desc="documents", dynamic_ncols=True, mininterval=0.5
        )

    def done(self, number: int, part: Path) -> None:
        """Count the part of one input."""
        if part.is_dir():
            self._documents += len(np.load(part / "documents.npy", mmap_mode="r", allow_pickle=False))
        rate = self._documents / max(time.monotonic() - self._start, 1e-9)
        self._bar.set_postfix_str(f"{self._documents} documents, {rate:.0f}/s", refresh=False)
        self._bar.update(self._sizes[number])

    def close(self) -> None:
        """Leave the line as it is."""
        self._bar.close()
