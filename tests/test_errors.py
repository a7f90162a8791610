"""One-line messages of exceptions."""

import errno
import os

import pytest

from bali_ds.errors import first_line, system_error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n a: is wrong \nsecond line"), "a: is wrong "),
        (ValueError(""), "ValueError"),
        (RuntimeError(" \n"), "RuntimeError"),
        (KeyError(), "KeyError"),
    ],
)
def test_the_first_line_of_a_message_or_the_name_of_the_type(error, line):
    assert first_line(error) == line


def test_a_message_other_than_that_of_the_error():
    assert first_line(ValueError("a"), "b\nc") == "b"
    assert first_line(ValueError("a"), "") == "ValueError"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "f"), "No space left on device"),
        (OSError("a message\nof a library"), "a message"),  # strerror is None
        (OSError(), "OSError"),
        (RuntimeError("panicked (os error 28)"), os.strerror(28)),
        (RuntimeError("of another kind"), None),
    ],
)
def test_what_the_system_says_of_an_error(error, reason):
    assert system_error(error) == reason
