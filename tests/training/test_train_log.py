"""train.log: what is printed and logged, with times, from before the run directory exists."""

import logging
import re

from bali_ds.terminal import print_progress
from bali_ds.training.train_log import TrainLog


def test_lines_have_times_and_those_before_the_directory_are_kept(tmp_path):
    log = TrainLog()
    with log.running():
        print_progress("before")
        log.open_in(tmp_path)
        print_progress("two\nlines")
        logging.getLogger("bali_ds.x").warning("a \x1b[31m warning")
    print_progress("after")
    logging.getLogger("bali_ds.x").warning("after")
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert [line.partition("  ")[2] for line in lines] == ["before", "two", "lines", r"a \x1b[31m warning"]
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d  ", line) for line in lines)
    again = TrainLog()
    with again.running():
        again.open_in(tmp_path)
        print_progress("resumed")
    assert len((tmp_path / "train.log").read_text().splitlines()) == 5


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path):
    log = TrainLog()
    with log.running():
        log.open_in(tmp_path / "nowhere")
        print_progress("on")
