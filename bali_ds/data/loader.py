"""Loader: an endless iterator over one rank's steps, made in worker processes ahead of time."""

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from bali_ds.data.batch import Batch, as_tensors
from bali_ds.data.batch_part import BatchPart
from bali_ds.data.batch_sampler import BatchSampler, RankSlice, StepArrays
from bali_ds.data.mixture import Mixture
from bali_ds.data.sample_validation import Quarantine, Replacement
from bali_ds.data.sampler import Position
from bali_ds.data.settings import StreamSettings
from bali_ds.data.worker import WorkerFailedError, description, receive_step
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.shards.shard_set import ShardSet

_PREFETCHED_STEPS = 2
# Signals that a program raises by its own fault, and would raise again.
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)
# A process that hangs in the kernel, on a file server that is gone, does not die before the server is back.
_SECONDS_TO_DIE = 5.0


class WorkerKilledError(RuntimeError):
    """A loader worker was killed from outside, for example by the kernel for lack of memory; a retry may help."""


@dataclass(frozen=True)
class Step:
    """The data of one optimizer step.

    Attributes:
        position_after: the position in the data after this step; all that a checkpoint needs to keep.
        micro_batches: the micro-batches of this rank.
        replaced: the bad samples of the step, and what replaced them.
    """

    position_after: Position
    micro_batches: tuple[Batch, ...]
    replaced: tuple[Replacement, ...] = ()


class Loader:
    """Endless iterator over the steps of one rank, from epoch to epoch.

    Every rank computes the same number of steps, and every global batch holds the same samples whatever the
    world size, the number of workers and the interruptions.

    Args:
        shards: the samples.
        graph: the graph that the shards were built from.
        settings: of order, masking and padding, with the parts of the objectives.
        global_batch: samples of a step over all ranks.
        micro_batches: micro-batches of a step on each rank.
        rank: of this process.
        world_size: number of ranks.
        workers: processes that make batches ahead of time; 0 makes them in this process.
        start: position to resume from.
        pin_memory: put batches into page-locked memory.
        quarantine: file to which each bad sample is appended as one line of JSON; one for each rank.

    Attributes:
        steps_per_epoch: whole steps of an epoch.

    Raises:
        InputError: the shards were built from another graph or the batch cannot be split evenly; while iterating, a
            shard cannot be read or too many samples are bad.
    """

    def __init__(
        self,
        shards: ShardSet | Mixture,
        graph: KnowledgeGraph,
        settings: StreamSettings,
        *,
        global_batch: int,
        micro_batches: int = 1,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        start: Position | None = None,
        pin_memory: bool = False,
        quarantine: Path | None = None,
    ) -> None:
        own, start = RankSlice(global_batch, micro_batches, rank, world_size), start or Position()
        mixture = Mixture.of(shards)
        self._quarantine = Quarantine(mixture, quarantine, settings.bad_samples)
        self._next = 0
        self._steps = BatchSampler(mixture, graph, settings, own, start)
        self._workers = [
            _Worker(description(mixture, graph, settings, own, start, number, workers), settings.parts, pin_memory)
            for number in range(workers)
        ]
        self._sources: list[_Worker | _InProcess] = [*self._workers] or [_InProcess(self._steps.run(), pin_memory)]
        self.steps_per_epoch = self._steps.schedule.steps_per_epoch

    def __iter__(self) -> Iterator[Step]:
        return self

    @property
    def source(self) -> str:
        """The worker or process that makes the next step, for messages."""
        return str(self._source)

    @property
    def _source(self) -> "_Worker | _InProcess":
        return self._sources[self._next % len(self._sources)]

    def ready(self, seconds: float) -> bool:
        """Wait for the next step for at most some seconds; return whether `next` would return at once."""
        return self._source.ready(seconds)

    def __next__(self) -> Step:
        step = self._source.take()
        number, self._next = self._next, self._next + 1
        samples = sum(batch.sample_rows.shape[0] for batch in step.micro_batches)
        self._quarantine.record(number, samples, step.replaced)
        return step

    def close(self) -> None:
        """End the worker processes."""
        for worker in self._workers:
            worker.close()
        self._workers = []
        self._steps.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _step(arrays: StepArrays, *, pin_memory: bool) -> Step:
    micro_batches = tuple(as_tensors(micro_batch) for micro_batch in arrays.micro_batches)
    if pin_memory:
        micro_batches = tuple(batch.pin_memory() for batch in micro_batches)
    return Step(arrays.position_after, micro_batches, arrays.replaced)


class _Worker:
    """A worker process, and the thread that reads its pipe and pins its batches ahead of time."""

    def __init__(self, work: str, parts: tuple[BatchPart, ...], pin_memory: bool) -> None:
        package = str(Path(__file__).parents[2])
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        # The worker keeps this mask: signals that all processes receive are for the training process to handle.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1))
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bali_ds.data.worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
            )  # fmt: skip
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        assert self._process.stdin is not None
        with self._process.stdin as stream:
            stream.write(work.encode() + b"\n")
        self._parts, self._pin_memory = parts, pin_memory
        self._ready: queue.Queue[Step | Exception] = queue.Queue(_PREFETCHED_STEPS)
        self._item: Step | Exception | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._receive, name="bali-ds stream", daemon=True)
        self._thread.start()

    def __str__(self) -> str:
        return f"a loader worker (process {self._process.pid})"

    def ready(self, seconds: float | None) -> bool:
        """Wait for the worker's next step or its end, without limit if None; return whether there is one."""
        if self._item is None:
            with suppress(queue.Empty):
                self._item = self._ready.get(timeout=seconds)
        return self._item is not None

    def take(self) -> Step:
        """Return the worker's next step; raise the error that ended the worker."""
        self.ready(None)
        item = self._item
        assert item is not None
        if isinstance(item, Exception):
            raise item
        self._item = None
        return item

    def close(self) -> None:
        """Kill the process, which holds no state, and end the thread."""
        self._closing.set()
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_SECONDS_TO_DIE)
            while self._thread.is_alive():
                self._discard()
                self._thread.join(0.01)

    def _discard(self) -> None:
        while not self._ready.empty():
            self._ready.get_nowait()

    def _receive(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            while not self._closing.is_set():
                try:
                    arrays = receive_step(stream, self._parts)
                    step = None if arrays is None else _step(arrays, pin_memory=self._pin_memory)
                except Exception as error:
                    self._ready.put(error)
                    return
                if step is None:
                    self._ready.put(_end_of_worker(self._process.wait()))
                    return
                self._ready.put(step)


class _InProcess:
    """The steps of a loader without workers. Only a wait with a time limit needs a thread, one for each step."""

    def __init__(self, steps: Iterator[StepArrays], pin_memory: bool) -> None:
        self._steps = (_step(arrays, pin_memory=pin_memory) for arrays in steps)
        self._thread: threading.Thread | None = None
        self._item: Step | Exception | None = None

    def __str__(self) -> str:
        return "the loader in the training process"

    def ready(self, seconds: float) -> bool:
        """Start to make the next step, and wait for it."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._make, name="bali-ds stream", daemon=True)
            self._thread.start()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def take(self) -> Step:
        """Return the next step; raise the error met while making it."""
        if self._thread is None:
            return next(self._steps)
        self._thread.join()
        self._thread, item, self._item = None, self._item, None
        assert item is not None
        if isinstance(item, Exception):
            raise item
        return item

    def _make(self) -> None:
        try:
            self._item = next(self._steps)
        except Exception as error:
            self._item = error


def _end_of_worker(status: int) -> Exception:
    if status < 0 and -status not in _CRASHES:
        return WorkerKilledError(f"a loader worker ended with status {status}: killed, perhaps for lack of memory")
    return WorkerFailedError(f"a loader worker ended with status {status}; see its output above")
