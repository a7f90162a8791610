"""Ends a rank of a test."""

import os
import sys
from typing import NoReturn


def leave() -> NoReturn:
    """End this process with status 0, without shutting down the interpreter.

    Threads of the process groups may still be running, and then an ordinary exit sometimes aborts ("terminate called
    without an active exception").
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
