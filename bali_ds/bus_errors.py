"""Bus errors: what happens when a memory-mapped file is truncated while it is read, or when its disk fails.

By default the kernel kills the process. A handler in Python cannot prevent that: Python runs it after the instruction
that failed, which is repeated and fails again. The handler here is called by the kernel itself, through ctypes, in the
thread that reads. It may run Python, because numpy and torch copy from mapped files outside of any lock of the C
library.
"""

import ctypes
import mmap
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bali_ds.errors import FAILED, MISTAKE, InputError
from bali_ds.terminal import message

# Of 64-bit Linux, where the address that could not be read follows three integers and padding.
_OFFSET_OF_ADDRESS = 16
_SA_SIGINFO = 4
_MAP_FIXED = 0x10


class _Action(ctypes.Structure):
    """`struct sigaction`."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_installed: list[Any] = []
_exiting = threading.Lock()
_reading: dict[int, list[str]] = {}
"""For each thread inside `bus_errors_raised`, the messages of its bus errors."""


def handle_bus_errors() -> None:
    """Let bus errors end this process with one line and exit status 2 from now on, outside of `bus_errors_raised`."""
    if _installed or sys.platform != "linux":
        return
    handler = _Handler(_handle)
    _installed.append(handler)  # keeps it alive
    action = _Action(handler=ctypes.cast(handler, ctypes.c_void_p), flags=_SA_SIGINFO)
    ctypes.CDLL(None).sigaction(signal.SIGBUS, ctypes.byref(action), None)


@contextmanager
def bus_errors_raised() -> Iterator[None]:
    """Raise an InputError at the end of the block if this thread met a bus error in it.

    Until then zeros are read in place of the pages that are gone, so the block may not have side effects.

    Raises:
        InputError: names the file.
    """
    handle_bus_errors()
    thread, errors = threading.get_ident(), list[str]()
    outer, _reading[thread] = _reading.get(thread), errors
    try:
        yield
    except Exception as error:
        if errors:  # the consequence of a zero
            raise InputError(errors[0]) from error
        raise
    finally:
        if outer is None:
            del _reading[thread]
        else:
            _reading[thread] = outer
    if errors:
        raise InputError(errors[0])


def _handle(_: int, information: int, __: int) -> None:
    try:
        address = ctypes.c_void_p.from_address(information + _OFFSET_OF_ADDRESS).value or 0
        line = f"{_file_at(address)}: cannot be read: it was truncated while in use, or its disk failed; copy it again"
        errors = _reading.get(threading.get_ident())
        if errors is None or not _replaced_by_zeros(address):
            _exiting.acquire()  # several threads of torch may meet the same file
            print(f"bali-ds: {message(line)}", file=sys.stderr, flush=True)
            os._exit(MISTAKE)
        errors.append(line)
    except BaseException:  # a return would repeat the instruction forever
        traceback.print_exc()
        os._exit(FAILED)


def _file_at(address: int) -> str:
    """Return the path of the file that is mapped at an address."""
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            begin, _, end = line.split(" ", 1)[0].partition("-")
            if int(begin, 16) <= address < int(end, 16):
                return line.rstrip("\n").split(maxsplit=5)[-1]
    return "a file"


def _replaced_by_zeros(address: int) -> bool:
    """Map a page of zeros over the one at an address; return whether that was possible."""
    page = address - address % mmap.PAGESIZE
    replace: Any = ctypes.CDLL(None).mmap
    replace.restype = ctypes.c_void_p
    replace.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
    return bool(replace(page, mmap.PAGESIZE, mmap.PROT_READ, flags, -1, 0) == page)
