"""Where tasks of a build run: in this process, in processes of this host, or on the ranks of an MPI job."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, Protocol

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
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as executor:
        yield _submitter(executor)


@contextmanager
def open_mpi_pool() -> Iterator[Pool | None]:
    """Yield a pool over the ranks of the MPI job to rank 0, None to the others once they have done their share."""
    from mpi4py.futures import MPICommExecutor

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with MPICommExecutor() as executor:
        yield None if executor is None else _submitter(executor)


def _in_turn(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
    return ((number, function(*argument)) for number, argument in enumerate(arguments))


def _submitter(executor: Any) -> Pool:
    def run(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        numbers: dict[Future[Any], int] = {
            executor.submit(function, *argument): number for number, argument in enumerate(arguments)
        }
        try:
            for future in as_completed(numbers):
                yield numbers[future], future.result()
        except BrokenProcessPool as error:
            raise InputError(
                "a worker process died (out of memory?); run the same command again with fewer --workers, it goes on"
            ) from error
        finally:
            for future in numbers:
                future.cancel()

    return run


def _end_with_parent() -> None:
    """End a worker whose builder is gone: it would wait for tasks for ever."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
