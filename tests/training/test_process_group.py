"""Errors that a rank reports to the others."""

import pytest

from bali_ds.checkpoint.asynchronous_save import AsynchronousSave
from bali_ds.errors import InputError
from bali_ds.training.process_group import RankError


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("recipe.yaml: is wrong"), "recipe.yaml: is wrong"),
        (ValueError("a\nb"), "ValueError: a (traceback in the output of that rank)"),
        (ValueError(), "ValueError (traceback in the output of that rank)"),
    ],
)
def test_any_error_becomes_one_line(error, line):
    assert RankError.of(error, 1).line == line


def test_the_error_with_the_smallest_status_is_reported_first():
    mistake, unforeseen = RankError.of(InputError("a"), 0), RankError.of(ValueError("b"), 1)
    assert min(mistake, unforeseen) == unforeseen


def test_a_save_that_fails_without_a_message_is_a_fault(tmp_path):
    save = AsynchronousSave(tmp_path / "step-00000001")
    with save.recorded_fault():
        raise OSError
    assert save.fault == "OSError"
