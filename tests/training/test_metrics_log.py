"""metrics.jsonl: continued without repeated steps, and complete lines whatever the disk does."""

import json

import pytest

from bali_ds.errors import InputError
from bali_ds.training.metrics_log import MetricsLog
from tests.damage import largest_file


def steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_steps_that_are_repeated_and_an_incomplete_line_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [json.dumps({"step": step, "loss": float("nan")}) for step in range(1, 6)]
    path.write_text("\n".join([*rows, "[]", '{"step": "3"}', '{"step": 1, "lo']))
    log = MetricsLog(tmp_path, 3, {})
    log.write(4, {"loss": 1.0})
    log.close(complete=True)
    assert steps(path) == [1, 2, 3, 4]


def test_a_full_disk_drops_lines_with_one_warning_and_leaves_no_half_line(tmp_path, caplog):
    log = MetricsLog(tmp_path, 0, {})
    log.write(1, {"loss": 1.0})
    size = (tmp_path / "metrics.jsonl").stat().st_size
    with largest_file(size + 5):
        for step in (2, 3):
            log.write(step, {"loss": 1.0})
    assert [each for each in caplog.messages if "metrics.jsonl" in each] == [
        f"{tmp_path}/metrics.jsonl: metrics are dropped while it cannot be written: No space left on device"
    ]
    log.write(4, {"loss": 1.0})
    log.close(complete=True)
    assert steps(tmp_path / "metrics.jsonl") == [1, 4]


def test_a_log_that_cannot_be_opened_is_one_line(tmp_path):
    (tmp_path / "other/metrics.jsonl").mkdir(parents=True)
    with pytest.raises(InputError, match=r"metrics\.jsonl: cannot be read: it is not a regular file"):
        MetricsLog(tmp_path / "other", 0, {})
