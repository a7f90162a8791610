"""Spans of time on the host or on a GPU, measured without waiting for the GPU."""

import time
from typing import Any

import torch


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
