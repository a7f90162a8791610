"""The lock of a run's directory, held by processes of this machine and by simulated ones of others."""

import errno
import fcntl
import json
import os
import signal
import socket
import time

import pytest

from bali_ds.errors import InputError
from bali_ds.training import run_lock
from bali_ds.training.run_lock import RunLock
from tests.forked import fork


def held(directory, seconds):
    """Hold the lock for a while; return 2 where somebody else has it."""
    try:
        with RunLock(directory):
            time.sleep(seconds)
    except InputError:
        return 2
    return 0


def held_until_refused(directory, others):
    """Hold the lock until so many others were refused; return 2 where somebody else has it."""
    refused = directory.with_name("refused")
    refused.mkdir(exist_ok=True)
    try:
        with RunLock(directory):
            until = time.monotonic() + 60
            while len(list(refused.iterdir())) < others and time.monotonic() < until:
                time.sleep(0.01)
            for name in refused.iterdir():
                name.unlink()
    except InputError:
        (refused / str(os.getpid())).touch()
        return 2
    return 0


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock."""
    process = fork(held, tmp_path / "run", 600)
    lock = tmp_path / ".run.lock"
    while not lock.exists() or not lock.stat().st_size:
        time.sleep(0.01)
    yield process
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(run_lock, "TOUCH_SECONDS", 0.2)
    monkeypatch.setattr(run_lock, "STALE_SECONDS", 2.0)


@pytest.fixture
def local_locks(monkeypatch):
    """A file system that does not share fcntl locks between hosts, seen from another host."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)


def test_the_holder_is_named(tmp_path, holder):
    with pytest.raises(InputError) as refused, RunLock(tmp_path / "run"):
        pytest.fail("the lock was taken twice")
    assert f"{tmp_path / 'run'}: is in use by process {holder} on host {socket.gethostname()}" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_scheduler_job_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with RunLock(tmp_path / "run"):
        assert json.loads((tmp_path / ".run.lock").read_text())["job"] == "4711"


def test_a_link_to_the_directory_has_the_same_lock(tmp_path, holder):
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/link").symlink_to(tmp_path / "run")
    with pytest.raises(InputError, match=f"process {holder} "), RunLock(tmp_path / "elsewhere/link"):
        pass


def test_a_killed_holder_blocks_nobody(tmp_path):
    process, lock = fork(held, tmp_path / "run", 600), tmp_path / ".run.lock"
    while not lock.exists() or not lock.stat().st_size:
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    assert lock.exists()
    begun = time.monotonic()
    with RunLock(tmp_path / "run"):
        assert time.monotonic() - begun < 10
    assert list(tmp_path.iterdir()) == []


def test_one_of_many_takes_over_a_stale_file(tmp_path):
    left = {"host": "here", "process": "1", "since": "today", "machine": run_lock.machine_id()}
    for _ in range(5):
        (tmp_path / ".run.lock").write_text(json.dumps(left))
        processes = [fork(held_until_refused, tmp_path / "run", 7) for _ in range(8)]
        statuses = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
        assert sorted(statuses) == [0] + [2] * 7


@pytest.mark.usefixtures("hasty", "local_locks")
def test_a_live_holder_on_another_host_is_recognized_by_its_touches(tmp_path, monkeypatch):
    process = fork(held, tmp_path / "run", 600)
    while not (tmp_path / ".run.lock").exists():
        time.sleep(0.01)
    monkeypatch.setattr(run_lock, "machine_id", lambda: "another")
    # the clock of this host is a day ahead
    monkeypatch.setattr(time, "time", lambda ahead=time.time: ahead() + 86_400)
    try:
        with pytest.raises(InputError, match=f"process {process} "), RunLock(tmp_path / "run"):
            pass
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


@pytest.mark.parametrize("content", ['{"machine": "another"}', "", "[]", "\x00\x01", "[" * 4000])
@pytest.mark.usefixtures("hasty")
def test_a_file_of_another_host_that_nobody_touches_is_stale(tmp_path, content):
    lock = tmp_path / ".run.lock"
    lock.write_text(content)
    begun = time.monotonic()
    with RunLock(tmp_path / "run"):
        assert 1.5 < time.monotonic() - begun < 20
    lock.write_text(content)
    os.utime(lock, (time.time() - 100, time.time() - 100))
    begun = time.monotonic()
    with RunLock(tmp_path / "run"):
        assert time.monotonic() - begun < 1.5


@pytest.mark.usefixtures("hasty")
def test_a_holder_whose_file_was_replaced_ends(tmp_path):
    process = fork(held, tmp_path / "run", 600)
    lock = tmp_path / ".run.lock"
    while not lock.exists():
        time.sleep(0.01)
    (tmp_path / "other").write_text("{}")
    os.replace(tmp_path / "other", lock)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 2
    assert lock.read_text() == "{}"


def test_a_directory_that_cannot_be_written_is_reported_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"lock cannot be written: "), RunLock(tmp_path / "file/run"):
        pass


@pytest.mark.usefixtures("hasty")
def test_control_characters_of_a_lock_file_are_not_printed(tmp_path, caplog):
    owner = {"host": "a\x1b[2Jb", "process": "1", "since": "today"}
    (tmp_path / ".run.lock").write_text(json.dumps(owner))
    with caplog.at_level("INFO"), RunLock(tmp_path / "run"):
        pass
    assert "another process" in caplog.text
    assert "\x1b" not in caplog.text
