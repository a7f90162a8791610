"""Progress of long work: a bar on a terminal, and a line every ten seconds in a redirected log; times as text."""

import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from bali_ds.terminal import verbosity

_SECONDS_BETWEEN_LINES = 10.0


class _Lines(tqdm):
    """Bar whose states are printed as lines of their own."""

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        def write(text: str) -> None:
            if text.strip():
                print(text.strip(), file=file, flush=True)

        return write


def progress_bar(what: str, total: int | None, unit: str, *, shown: bool = True, **options: Any) -> "tqdm[Any]":
    """Return a progress bar on stderr, which is closed by the caller or a `with` block.

    Args:
        what: the work.
        total: units of the whole work; None if unknown.
        unit: name of a unit.
        shown: whether to show anything; a quiet process shows nothing.
        options: for tqdm.
    """
    options |= {"desc": what, "total": total, "unit": f" {unit}", "file": sys.stderr}
    if not shown or verbosity() == "quiet":
        return tqdm(disable=True, **options)
    if sys.stderr.isatty():
        return tqdm(dynamic_ncols=True, **options)
    # short work needs no line; what is printed at the end of it is enough
    return _Lines(mininterval=_SECONDS_BETWEEN_LINES, delay=_SECONDS_BETWEEN_LINES, ncols=100, ascii=True, **options)


def duration(seconds: float) -> str:
    """Return a time as text: 45 s, 5 min 03 s, 3 h 04 min, or 2 d 3 h."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour} h"
    if hours:
        return f"{hours} h {minute:02d} min"
    return f"{minutes} min {second:02d} s" if minutes else f"{second} s"
