"""Ports for the jobs of tests."""

import os
import socket
from contextlib import suppress
from itertools import count

_numbers = count(os.getpid() * 61)  # tests that run beside this one start elsewhere


def free_port() -> int:
    """Return a port of this host that is not in use, below those that the system gives to outgoing connections."""
    while True:
        port = 20_000 + next(_numbers) % 12_000
        with suppress(OSError), socket.socket() as free:
            free.bind(("127.0.0.1", port))
            return port
