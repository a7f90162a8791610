"""Progress in a redirected log is lines, far apart; on a terminal it is a bar."""

import sys

import pytest

from bali_ds import progress_bar as module
from bali_ds.progress_bar import duration, progress_bar


@pytest.mark.parametrize("seconds", [0.0, 10.0])
def test_a_redirected_log_gets_whole_lines_and_none_for_short_work(capsys, monkeypatch, seconds):
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_LINES", seconds)
    with progress_bar("encode", 3, "texts") as bar:
        for _ in range(3):
            bar.update()
    said = capsys.readouterr().err
    assert "\r" not in said
    assert ("encode" in said) == (seconds == 0)


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress_bar("encode", 3, "texts") as bar:
        bar.update(3)
    assert "\rencode: 100%" in capsys.readouterr().err


def test_times_have_the_two_units_that_matter():
    seconds = (5.4, 59.6, 65, 3600, 3 * 3600 + 245, 90061)
    assert [duration(each) for each in seconds] == [
        "5 s", "1 min 00 s", "1 min 05 s", "1 h 00 min", "3 h 04 min", "1 d 1 h",
    ]  # fmt: skip
