"""Exceptions that end a command or a run, their exit statuses, and one-line messages."""


class InputError(ValueError):
    """Input that cannot be used as it is: a file, a recipe, an argument.

    The message is one line that names the file, line or key, says what is wrong and what to do.
    Commands print it without a traceback and exit with status 2.
    """


FAILED = 1
"""Exit status after an error that nobody foresaw; a rank that met one prints its traceback."""
MISTAKE = 2
"""Exit status of a run whose recipe, data or machines cannot be used as they are."""
DIVERGED = 3
"""Exit status of a run whose loss or gradients diverged: starting it again changes nothing."""
NOT_SAVED = 4
"""Exit status of a run whose last checkpoint could not be written.

It is not 75: a job that requeues itself would train the steps since the newest checkpoint again and again, for as long
as nobody makes room. Once somebody has, the same command resumes the run.
"""
STOPPED = 75
"""Exit status of a run that was interrupted and can be started again (EX_TEMPFAIL)."""


class RunEnded(Exception):  # noqa: N818 not every end is an error
    """The run ends here. The message is one line for rank 0 to print.

    Attributes:
        status: that every rank exits with.
    """

    status: int


class RankFailed(RunEnded):
    """Another rank met an error that ends the run, or a loader worker of any rank did."""

    def __init__(self, line: str, status: int) -> None:
        super().__init__(line)
        self.status = status


class LostRank(RunEnded):
    """The connection to another rank broke, and that rank left no error: it was killed, or its host is gone."""

    status = STOPPED


def first_line(error: BaseException, message: str | None = None) -> str:
    """Return the first line of an error's message, or the name of its type where the message is empty.

    Args:
        error: any exception.
        message: the message, `str(error)` by default.
    """
    lines = (str(error) if message is None else message).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def exit_status(error: Exception) -> int:
    """Return the exit status of a run that an error ends."""
    if isinstance(error, InputError):
        return MISTAKE
    return error.status if isinstance(error, RunEnded) else FAILED
