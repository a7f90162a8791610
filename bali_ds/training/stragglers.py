"""Finds the hosts that the others wait for."""

import socket
import statistics
from collections.abc import Sequence
from typing import Any

from bali_ds.model.aligner import Aligner
from bali_ds.preflight.flops import ENCODED
from bali_ds.stream.batch import Batch
from bali_ds.training.cluster import Cluster
from bali_ds.training.stopwatch import Stopwatch

SLOW = 1.25
"""A host is named when its time is so many times that of the median host."""


class Stragglers:
    """Times what each rank does before it first needs the others: the encoder's passes over its first micro-batch.

    The time of a whole step is the same on all ranks, since they wait for each other.
    """

    def __init__(self, aligner: Aligner, cluster: Cluster) -> None:
        self._cluster = cluster
        self._watch = Stopwatch(cluster.device)
        self._left = 0
        self._open: Any = None
        aligner.get_submodule("text.encoder").register_forward_hook(self._encoded)

    def begins(self, chunks: Sequence[Batch]) -> None:
        """Take note that a step begins."""
        self._left = sum(len(getattr(chunks[0], kind, ())) for kind in ENCODED)
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
        return slow_hosts(self._cluster.collect(own))


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
