"""One-line messages of exceptions."""

import pytest

from bali_ds.errors import first_line


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
