"""Timers of a rank: time in collectives, and the encoder's time by which slow hosts are found."""

import functools
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from bali_ds.checkpoint.manager import RunProgress
from bali_ds.data.loader import Step
from bali_ds.distributed import Ranks
from bali_ds.library_internals import wrapped_collectives
from bali_ds.model.aligner import Aligner
from bali_ds.training.step import StepCallback


class DeviceTimer:
    """Records spans of time on a device.

    On a GPU, events are recorded in the current stream and read once they have completed.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._spans: list[tuple[Any, Any]] = []

    def now(self) -> Any:
        """Return this moment, as the begin of a span."""
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def record_since(self, begin: Any) -> None:
        """Record a span that ends now; any thread may call this."""
        self._spans.append((begin, self.now()))

    def read(self) -> list[float]:
        """Return the seconds of the spans that have ended, each once; spans that a GPU still works on remain."""
        spans, self._spans = self._spans, []
        if not self._on_gpu:
            return [end - begin for begin, end in spans]
        ended: list[tuple[Any, Any]] = []
        for span in spans:
            (ended if span[1].query() else self._spans).append(span)
        return [begin.elapsed_time(end) / 1000 for begin, end in ended]


class CommunicationTimer:
    """Times every collective from its call to the moment when its result may be used.

    Waiting for slower ranks is part of it. On CPUs it is how long the host was blocked: a collective that runs beside
    the computation counts only where something waits for it. On GPUs it is the time of the stream that the collective
    was called on; gradients that DeepSpeed reduces on a stream of its own (`overlap_comm`) count although the backward
    pass continues meanwhile.
    """

    def __init__(self, device: torch.device) -> None:
        self._timer = DeviceTimer(device)

    def running(self) -> AbstractContextManager[None]:
        """Time the collectives of this process inside the block, whichever library calls them."""
        return wrapped_collectives(self._timed)

    def _timed(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(operation)
        def timed(*arguments: Any, **options: Any) -> Any:
            begin = self._timer.now()
            try:
                return operation(*arguments, **options)
            finally:
                self._timer.record_since(begin)

        return timed

    def seconds(self) -> float:
        """Return the seconds since the last call."""
        return sum(self._timer.read())


SLOW = 1.25
"""A host is slow when its time is that many times the median host's."""


class StragglerTimer(StepCallback):
    """Times what each rank does before it first waits for others: the encoder's first pass.

    The time of a whole step is the same on all ranks, since they wait for each other.
    """

    def __init__(self, aligner: Aligner, ranks: Ranks) -> None:
        self._ranks = ranks
        self._timer = DeviceTimer(ranks.device)
        self._begin: Any = None
        aligner.get_submodule("text.encoder").register_forward_hook(self._after_pass)

    def before_forward(self, progress: RunProgress, batch: Step) -> None:  # noqa: ARG002
        """Start the timer."""
        self._begin = self._timer.now()

    def _after_pass(self, *_: Any) -> None:
        if self._begin is not None:
            self._timer.record_since(self._begin)
            self._begin = None

    def gather_slow_hosts(self) -> str | None:
        """Return a line about hosts that were slow since the last call, on rank 0; every rank calls this."""
        seconds = self._timer.read()
        # the median, so that a rank that was delayed once is not slow
        own = (socket.gethostname(), statistics.median(seconds) if seconds else 0.0)
        times = self._ranks.gather_object(own)
        return slow_hosts(times) if times else None


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
    return f"slow hosts: {named} for the encoder's first pass, {median:.3f} s on the median host"
