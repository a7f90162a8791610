"""How long this rank stands in collectives, DeepSpeed's and the objective's alike."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed import ProcessGroup, Work

from bali_ds.training.stopwatch import Stopwatch

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
