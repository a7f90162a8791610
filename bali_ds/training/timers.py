"""Finds the hosts that the others wait for."""

import functools
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed import ProcessGroup, Work

from bali_ds.data.batch import Batch
from bali_ds.distributed import Ranks
from bali_ds.model.aligner import Aligner
from bali_ds.planning.flops import ENCODED


class Stopwatch:
    """Collects spans of time on a device.

    On a GPU events are recorded in the stream at hand, and read when they have long happened.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._spans: list[tuple[Any, Any]] = []

    def now(self) -> Any:
        """Return this moment, to begin a span with."""
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def since(self, begin: Any) -> None:
        """Take note of a span that ends now; any thread may."""
        self._spans.append((begin, self.now()))

    def read(self) -> list[float]:
        """Return the seconds of the spans that have ended, each once; those that a GPU is still at stay for later."""
        spans, self._spans = self._spans, []
        if not self._on_gpu:
            return [end - begin for begin, end in spans]
        ended: list[tuple[Any, Any]] = []
        for span in spans:
            (ended if span[1].query() else self._spans).append(span)
        return [begin.elapsed_time(end) / 1000 for begin, end in ended]


_COLLECTIVES = ("all", "barrier", "broadcast", "end_coalescing", "gather", "recv", "reduce", "scatter", "send")


class Communication:
    """Times every collective between its call and the moment when its result may be used.

    Waiting for ranks that are slower is part of it. On CPUs it is how long the host stood still: a collective that
    runs beside the computation counts only where something waits for it. On GPUs it is the time of the stream that
    the collective was called on; gradients that DeepSpeed reduces on a stream of its own (`overlap_comm`) count though
    the backward pass goes on meanwhile.
    """

    def __init__(self, device: torch.device) -> None:
        self._watch = Stopwatch(device)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Time the collectives of this process inside the block, whichever library calls them."""
        # Process groups, which every call goes through: DeepSpeed's own log of collectives waits for the GPU each time.
        called = [name for name in vars(ProcessGroup) if name.lstrip("_").startswith(_COLLECTIVES)]
        places = [(ProcessGroup, name) for name in called] + [(Work, "wait")]
        before = [(kind, name, vars(kind)[name]) for kind, name in places]
        for kind, name in places:
            setattr(kind, name, self._timed(getattr(kind, name)))
        try:
            yield
        finally:
            for kind, name, operation in before:
                setattr(kind, name, operation)

    def _timed(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(operation)
        def timed(*arguments: Any, **options: Any) -> Any:
            begin = self._watch.now()
            try:
                return operation(*arguments, **options)
            finally:
                self._watch.since(begin)

        return timed

    def seconds(self) -> float:
        """Return the seconds since the last call."""
        return sum(self._watch.read())


SLOW = 1.25
"""A host is named when its time is so many times that of the median host."""


class Stragglers:
    """Times what each rank does before it first needs the others: the encoder's passes over its first micro-batch.

    The time of a whole step is the same on all ranks, since they wait for each other.
    """

    def __init__(self, aligner: Aligner, ranks: Ranks) -> None:
        self._ranks = ranks
        self._watch = Stopwatch(ranks.device)
        self._left = 0
        self._open: Any = None
        aligner.get_submodule("text.encoder").register_forward_hook(self._encoded)

    def begins(self, micro_batches: Sequence[Batch]) -> None:
        """Take note that a step begins."""
        self._left = sum(len(getattr(micro_batches[0], kind, ())) for kind in ENCODED)
        self._open = self._watch.now()

    def _encoded(self, *_: Any) -> None:
        self._left -= 1
        if not self._left and self._open is not None:
            self._watch.since(self._open)
            self._open = None

    def report(self) -> str | None:
        """Return a line about hosts that were slow since the last report; every rank calls this."""
        seconds = self._watch.read()
        # the median: a rank that was held up once is none
        own = (socket.gethostname(), statistics.median(seconds) if seconds else 0.0)
        return slow_hosts(self._ranks.all_gather_object(own))


def slow_hosts(times: Sequence[tuple[str, float]]) -> str | None:
    """Return a line that names the hosts whose slowest rank takes SLOW times the median host's, if there are any.

    Args:
        times: host and seconds of each rank.
    """
    hosts: dict[str, float] = {}
    for host, seconds in times:
        hosts[host] = max(hosts.get(host, 0.0), seconds)
    median = statistics.median_low(hosts.values())
    slow = sorted((host for host in hosts if hosts[host] > SLOW * median), key=lambda host: -hosts[host])
    if not slow:
        return None
    named = ", ".join(f"{host} {hosts[host]:.3f} s" for host in slow)
    return f"slow hosts: {named} for the encoder's passes, {median:.3f} s on the median host"
