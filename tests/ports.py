"""Ports for the jobs of tests."""

import os
import socket
from contextlib import suppress
from itertools import count

_numbers = count()


def free_port() -> int:
    """Return a port of this host that is not in use, below those that the system gives to outgoing connections."""
    while True:
        # tests that run beside this one, and jobs that it forks at the same time, start elsewhere
        port = 20_000 + (os.getpid() * 61 + next(_numbers)) % 12_000
        with suppress(OSError), socket.socket() as free:
            free.bind(("127.0.0.1", port))
            return port
