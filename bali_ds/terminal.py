"""Text from outside on a terminal: control characters are shown, never obeyed."""

import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from bali_ds.errors import system_error

logger = logging.getLogger(__name__)

# C0, C1, delete, line separators, half surrogate pairs, and the characters that reorder a line (Unicode TR 36, 2.10).
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_LONGEST_MESSAGE = 2000


def printable(text: str) -> str:
    """Return text on one line, in which control characters are escaped as in a Python string."""
    return _UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], text)


def json_line(value: Any) -> str:
    """Return a value as one line of JSON, with control characters escaped and other characters as they are."""
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))


def printable_values(value: Any) -> Any:
    """Return dictionaries, lists and tuples of values with all their strings, keys included, made printable."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable_values(key): printable_values(each) for key, each in value.items()}
    return type(value)(map(printable_values, value)) if isinstance(value, list | tuple) else value


def message(error: object) -> str:
    """Return the message of an error as one printable line of limited length."""
    line = printable(str(error))
    return line if len(line) <= _LONGEST_MESSAGE else f"{line[:_LONGEST_MESSAGE]}…"


_COPIES: list[Callable[[str], None]] = []


@contextmanager
def copied_progress(write: Callable[[str], None]) -> Iterator[None]:
    """Call `write` with every text that `print_progress` prints in the block."""
    _COPIES.append(write)
    try:
        yield
    finally:
        _COPIES.remove(write)


_VERBOSITY = ["normal"]


def set_verbosity(chosen: str) -> None:
    """Set how much this process prints: "quiet", "normal" or "verbose"."""
    _VERBOSITY[0] = chosen


def verbosity() -> str:
    """Return how much this process prints: "quiet" is only results and errors, "verbose" also logs of libraries."""
    return _VERBOSITY[0]


def print_progress(text: str) -> None:
    """Print progress on standard output, unless this process is quiet; copies are written all the same."""
    _print(text, shown=verbosity() != "quiet")


def print_result(text: str) -> None:
    """Print the result of a run on standard output, also in a quiet process."""
    _print(text, shown=True)


def _print(text: str, *, shown: bool) -> None:
    """Print text; on a full disk that is a warning, and does not end a run."""
    lines = [printable(line) for line in text.split("\n")]
    for copy in _COPIES:
        copy("\n".join(lines))
    if not shown:
        return
    try:
        print(*lines, sep="\n", flush=True)
    except OSError as error:
        _warn_once(f"standard output cannot be written, the run continues without it: {system_error(error)}")


@cache
def _warn_once(line: str) -> None:
    logger.warning(line)


class PrintableFormatter(logging.Formatter):
    """Formatter of log records as their message alone, one printable line, and the traceback if they have one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        lines = self.formatException(record.exc_info).split("\n") if record.exc_info else []
        return "\n".join([message(record.getMessage()), *map(printable, lines)])
