"""How a rank of a test ends."""

import os
import sys
from typing import NoReturn


def leave() -> NoReturn:
    """End this process as a success, without the interpreter's tearing down.

    Threads of the process groups may still be ending; an ordinary exit aborts now and then ("terminate called without
    an active exception").
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
