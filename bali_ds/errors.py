"""Exceptions that end a command or a run, their exit statuses, and one-line messages."""

import difflib
import os
import re
from collections.abc import Iterable

_OS_ERROR_IN_RUST = re.compile(r"\(os error ([0-9]{1,4})\)")


class InputError(ValueError):
    """Invalid input: a file, a recipe or an argument.

    The message is one line that names the file, line or key, what is wrong, and what to do. Commands print it without a
    traceback and exit with status 2.
    """


FAILED = 1
"""Exit status after an unexpected error; the rank where it happened prints the traceback."""
MISTAKE = 2
"""Exit status of a run with an invalid recipe, invalid data or unsuitable machines."""
DIVERGED = 3
"""Exit status of a run whose loss or gradients diverged; restarting it gives the same result."""
NOT_SAVED = 4
"""Exit status of a run whose last checkpoint could not be written.

It is not 75: a job that requeues itself would repeat the steps since the newest checkpoint until the disk has room.
Then the same command resumes the run.
"""
STOPPED = 75
"""Exit status of a run that was interrupted and can be resumed (EX_TEMPFAIL)."""


class RunEnded(Exception):  # noqa: N818 not every end is an error
    """End of a run; the message is one line, printed by rank 0.

    Attributes:
        status: exit status of every rank.
    """

    status: int


class RankFailed(RunEnded):
    """An error on another rank, or in a loader worker of any rank, that ends the run."""

    def __init__(self, line: str, status: int) -> None:
        super().__init__(line)
        self.status = status


class LostRank(RunEnded):
    """A lost connection to a rank that reported no error: it was killed, or its host failed."""

    status = STOPPED


def first_line(error: BaseException, message: str | None = None) -> str:
    """Return the first line of an error's message, or the name of its type where the message is empty.

    Args:
        error: any exception.
        message: the message, `str(error)` by default.
    """
    lines = (str(error) if message is None else message).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def system_error(error: Exception) -> str | None:
    """Return the message of the operating system where it caused an exception, also one of a library in Rust.

    The errors of libraries may be OSErrors without a number; then it is the first line of their own message.
    """
    if isinstance(error, OSError):
        return error.strerror or first_line(error)
    found = _OS_ERROR_IN_RUST.search(str(error))
    return os.strerror(int(found[1])) if found else None


def nearest(wrong: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most similar to an unknown one, or None if none is similar."""
    names = {name.lower(): name for name in sorted(known)}
    found = difflib.get_close_matches(wrong.lower(), names, n=1)
    return names[found[0]] if found else None


def suggestion(wrong: str, known: Iterable[str]) -> str:
    """Return what to do about an unknown name: the most similar known one, or the first known ones."""
    similar = nearest(wrong, known)
    return f"did you mean {similar}?" if similar else f"use one of {', '.join(sorted(known))[:200]}"


def missing_package(error: ModuleNotFoundError, extra: str) -> InputError:
    """Return the error of a command that lacks a package of one of the extras in setup.py.

    Raises:
        ModuleNotFoundError: the same error, if a module of bali-ds itself is missing.
    """
    package = (error.name or "").partition(".")[0]
    if package in ("", "bali_ds"):
        raise error
    return InputError(f"{package} is not installed; install it with: pip install 'bali-ds[{extra}]'")


def is_failure(error: BaseException) -> bool:
    """Return whether an exception is a failure of the called code, also a panic of a library in Rust.

    A panic is raised as a BaseException, like a request to exit.
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def exit_status(error: Exception) -> int:
    """Return the exit status of a run that ended with an error."""
    if isinstance(error, InputError):
        return MISTAKE
    return error.status if isinstance(error, RunEnded) else FAILED
