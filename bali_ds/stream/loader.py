"""The loader: an endless stream of one rank's steps, made in worker processes ahead of time."""

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from bali_ds.errors import InputError
from bali_ds.graph.store import KnowledgeGraph
from bali_ds.shards.store import ShardSet
from bali_ds.stream.batch import Batch, TokenBlock
from bali_ds.stream.collation import BatchArrays
from bali_ds.stream.mixture import Mixture
from bali_ds.stream.order import Position
from bali_ds.stream.quarantine import Quarantine
from bali_ds.stream.settings import StreamSettings
from bali_ds.stream.soundness import Replacement
from bali_ds.stream.steps import RankSteps, Share, StepArrays
from bali_ds.stream.wire import receive_step
from bali_ds.stream.worker import description

_PREFETCHED_STEPS = 2


@dataclass(frozen=True)
class Step:
    """What one optimiser step takes.

    Attributes:
        position_after: where the data stand once this step is done; all that a checkpoint needs to keep.
        chunks: the micro-batches of this rank.
        replaced: the bad samples it met, and what stands in for them.
    """

    position_after: Position
    chunks: tuple[Batch, ...]
    replaced: tuple[Replacement, ...] = ()


class Loader:
    """Iterates over the steps of one rank, without end, from epoch to epoch.

    Every rank computes the same number of steps, and every global batch holds the same samples whatever the
    world size, the number of workers and the interruptions.

    Args:
        shards: the samples.
        graph: the graph that the shards were built from.
        settings: of order, masking and padding.
        global_batch: samples of a step over all ranks.
        chunks: micro-batches of a step on each rank.
        rank: of this process.
        world_size: number of ranks.
        workers: processes that make batches ahead; 0 makes them in this process.
        start: where to go on.
        pin_memory: hand out batches in page-locked memory.
        quarantine: file to which each bad sample is appended as one line of JSON; one for each rank.

    Attributes:
        steps_per_epoch: whole steps of an epoch.

    Raises:
        InputError: the graph is another one or the batch cannot be split evenly; while iterating, a shard cannot be
            read or too many samples are bad.
    """

    def __init__(
        self,
        shards: ShardSet | Mixture,
        graph: KnowledgeGraph,
        settings: StreamSettings,
        *,
        global_batch: int,
        chunks: int = 1,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        start: Position | None = None,
        pin_memory: bool = False,
        quarantine: Path | None = None,
    ) -> None:
        share, start = Share(global_batch, chunks, rank, world_size), start or Position()
        mixture = Mixture.of(shards)
        self._pin_memory = pin_memory
        self._quarantine = Quarantine(mixture, quarantine, settings.bad_samples)
        self._next = 0
        self._steps = RankSteps(mixture, graph, settings, share, start)
        self._made = self._steps.run()
        self._workers = [
            _Worker(description(mixture, graph, settings, share, start, number, workers)) for number in range(workers)
        ]
        self.steps_per_epoch = self._steps.schedule.steps_per_epoch

    def __iter__(self) -> Iterator[Step]:
        return self

    def __next__(self) -> Step:
        number, self._next = self._next, self._next + 1
        arrays = self._workers[number % len(self._workers)].take() if self._workers else next(self._made)
        chunks = tuple(as_batch(chunk) for chunk in arrays.chunks)
        samples = sum(batch.sample_ids.shape[0] for batch in chunks)
        self._quarantine.record(number, samples, arrays.replaced)
        if self._pin_memory:
            chunks = tuple(batch.pin_memory() for batch in chunks)
        return Step(arrays.position_after, chunks, arrays.replaced)

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


def as_batch(arrays: BatchArrays) -> Batch:
    """Return the arrays of a batch as tensors that share their memory."""

    def tensors(value):  # type: ignore[no-untyped-def]
        if isinstance(value, tuple):
            return tuple(TokenBlock(torch.from_numpy(ids), torch.from_numpy(lengths)) for ids, lengths in value)
        return torch.from_numpy(value)

    return Batch(**{name: tensors(value) for name, value in arrays.items()})


class _Worker:
    """A worker process, and the thread that empties its pipe ahead of need."""

    def __init__(self, work: str) -> None:
        package = str(Path(__file__).parents[2])
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        # The child inherits the mask for life: signals to all processes are for the training process to answer.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1))
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bali_ds.stream.worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
            )  # fmt: skip
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        assert self._process.stdin is not None
        with self._process.stdin as stream:
            stream.write(work.encode() + b"\n")
        self._ready: queue.Queue[StepArrays | BaseException] = queue.Queue(_PREFETCHED_STEPS)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._receive, name="bali-ds stream", daemon=True)
        self._thread.start()

    def take(self) -> StepArrays:
        """Return the worker's next step; raise what ended the worker."""
        item = self._ready.get()
        if isinstance(item, BaseException):
            self._ready.put(item)
            raise item
        return item

    def close(self) -> None:
        """Kill the process, which holds no state, and end the thread."""
        self._closing.set()
        self._process.kill()
        self._process.wait()
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
                    step = receive_step(stream)
                except Exception as error:
                    self._ready.put(error)
                    return
                if step is None:
                    self._ready.put(_end_of_worker(self._process.wait()))
                    return
                self._ready.put(step)


def _end_of_worker(status: int) -> Exception:
    if status == -signal.SIGBUS:
        return InputError("a loader worker lost a shard under its hands: cut short while in use, or its disk failed")
    return RuntimeError(f"a loader worker ended with status {status}; its last words are above")
