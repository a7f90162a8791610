"""Checkpoints that are flushed to disk while training continues, with an engine that only writes a file."""

import errno
import itertools
import json
import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

from bali_ds.checkpoint import asynchronous_save, manager
from bali_ds.checkpoint.manager import CheckpointManager, RunProgress
from bali_ds.checkpoint.marker import MARKER, checkpoint_step, complete_checkpoints
from bali_ds.config import CheckpointConfig
from bali_ds.data.sampler import Position
from bali_ds.distributed import Ranks
from bali_ds.files import read_json, sha256_file, sync, write_json


class Engine:
    """Writes one file, as DeepSpeed does, through its `checkpoint_engine`."""

    def __init__(self):
        self.module = torch.nn.Linear(2, 2)
        self.optimizer = SimpleNamespace(param_groups=[{"params": list(self.module.parameters())}])
        self.checkpoint_engine = TorchCheckpointEngine()

    def save_checkpoint(self, directory, *, tag, client_state, save_latest):
        assert not save_latest
        state = {"module": self.module.state_dict(), **client_state}
        self.checkpoint_engine.save(state_dict=state, path=str(Path(directory) / tag / "mp_rank_00_model_states.pt"))


class Disk:
    """A disk that is slow, or fails."""

    def __init__(self):
        self.ready = threading.Event()
        self.fails = False

    def sync(self, file):
        self.ready.wait(60)
        if self.fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(file)


@pytest.fixture
def disk(monkeypatch):
    disk = Disk()
    monkeypatch.setattr(asynchronous_save, "sync", disk.sync)
    yield disk
    disk.ready.set()


@pytest.fixture
def checkpoints(tmp_path):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    found: Any = CheckpointManager(
        tmp_path / "checkpoints",
        Ranks(0, 1),
        CheckpointConfig(every=20, keep=2),
        identity={"data": "same", "world size": 1, "ZeRO stage": 0},
    )
    found.warnings = []
    found.warn = found.warnings.append
    yield found
    dist.destroy_process_group()


def at(step):
    return RunProgress(step, Position(0, 8 * step))


def steps_of(checkpoints):
    return sorted(checkpoint_step(path) for path in complete_checkpoints(checkpoints.directory))


def test_training_continues_while_the_disk_is_slow(checkpoints, disk):
    checkpoints.save(Engine(), at(20))
    checkpoints.publish_if_flushed()
    assert steps_of(checkpoints) == []
    disk.ready.set()
    assert checkpoints.finish()
    (path,) = complete_checkpoints(checkpoints.directory)
    (file,) = path.glob("*.pt")
    marker = read_json(path / MARKER)
    assert marker["progress"] == {"step": 20, "position": {"epoch": 0, "samples_seen": 160}}
    assert marker["files"] == {file.name: {"bytes": file.stat().st_size, "sha256": sha256_file(file)}}
    assert sorted(each.name for each in checkpoints.directory.iterdir()) == [path.name]


def test_a_step_boundary_publishes_a_flushed_checkpoint(checkpoints, disk):
    disk.ready.set()
    checkpoints.save(Engine(), at(20))
    checkpoints._pending[1].wait(60)
    checkpoints.publish_if_flushed()
    assert steps_of(checkpoints) == [20]


def test_the_next_call_waits_for_the_flush(checkpoints, disk):
    checkpoints.save(Engine(), at(20))
    threading.Timer(0.2, disk.ready.set).start()
    checkpoints.save(Engine(), at(40))
    assert 20 in steps_of(checkpoints)
    assert checkpoints.any_complete()
    assert steps_of(checkpoints) == [20, 40]


def test_ranks_wait_for_a_disk_in_short_collective_calls(checkpoints, disk, monkeypatch):
    flushing = []

    def all_reduce_max(value):
        flushing.append(value)
        return value

    monkeypatch.setattr(manager, "_SECONDS_BETWEEN_COMPARISONS", 0.01)
    checkpoints.save(Engine(), at(20))
    monkeypatch.setattr(checkpoints.ranks, "all_reduce_max", all_reduce_max)
    threading.Timer(0.2, disk.ready.set).start()
    assert checkpoints.finish()
    assert flushing[:3] == [1, 1, 1]
    assert flushing[-1] == 0


def test_nothing_is_written_before_the_ranks_have_met_on_the_device(checkpoints, disk):
    class Meeting(Engine):
        def save_checkpoint(self, directory, **options):
            super().save_checkpoint(directory, **options)
            assert not list(Path(directory).rglob("*.pt"))  # here DeepSpeed calls a barrier

    disk.ready.set()
    checkpoints.save(Meeting(), at(20))
    assert checkpoints.finish()
    (path,) = complete_checkpoints(checkpoints.directory)
    assert len(list(path.glob("*.pt"))) == 1


def test_the_same_step_is_not_saved_twice(checkpoints, disk):
    disk.ready.set()
    for _ in range(2):
        checkpoints.save(Engine(), at(20))
    assert checkpoints._pending is None
    assert checkpoints.finish()


def test_nothing_is_saved_before_the_first_step(checkpoints):
    checkpoints.save(Engine(), at(0))
    assert not checkpoints.finish()


def test_a_disk_that_fails_late_costs_one_checkpoint(checkpoints, disk):
    disk.ready.set()
    checkpoints.save(Engine(), at(20))
    assert checkpoints.finish()
    disk.fails = True
    checkpoints.save(Engine(), at(40))
    assert not checkpoints.finish()
    assert steps_of(checkpoints) == [20]
    (line,) = checkpoints.warnings
    assert line.startswith("no checkpoint of step 40: ")
    assert os.strerror(errno.EIO) in line
    assert [checkpoints.due(step) for step in (41, 42, 43)] == [False, True, True]
    disk.fails = False
    checkpoints.save(Engine(), at(42))
    assert checkpoints.finish()
    assert steps_of(checkpoints) == [20, 42]
    assert not checkpoints.due(43)


def test_files_of_a_killed_save_are_not_a_checkpoint_and_are_removed(checkpoints, disk):
    left = checkpoints.directory / ".writing/step-00000020"
    left.mkdir(parents=True)
    (left / "mp_rank_00_model_states.pt").write_bytes(b"half")
    assert not checkpoints.any_complete()
    disk.ready.set()
    checkpoints.save(Engine(), at(40))
    assert checkpoints.finish()
    assert [path.name for path in checkpoints.directory.iterdir()] == ["step-00000040"]
    assert [file.suffix for file in (checkpoints.directory / "step-00000040").iterdir()].count(".pt") == 1


@pytest.fixture
def saved(checkpoints, disk):
    """A complete checkpoint of step 20."""
    disk.ready.set()
    checkpoints.save(Engine(), at(20))
    assert checkpoints.finish()
    return checkpoints.directory / "step-00000020"


@pytest.mark.parametrize("name", ["step-evil", "step-99", "step-00000099.bak", "step-000000099", "step-\u06600000099"])
def test_a_directory_with_another_name_is_ignored_and_not_removed(checkpoints, saved, name):
    shutil.copytree(saved, checkpoints.directory / name)
    warnings = []
    assert complete_checkpoints(checkpoints.directory, warnings.append) == [saved]
    assert [line.startswith(f"{checkpoints.directory / name}: not used, ") for line in warnings] == [True]
    checkpoints.save(Engine(), at(40))
    assert checkpoints.finish()
    assert (checkpoints.directory / name).is_dir()
    assert steps_of(checkpoints) == [20, 40]


def test_a_checkpoint_under_the_name_of_another_step_is_ignored(checkpoints, saved):
    shutil.copytree(saved, saved.with_name("step-00000099"))
    warnings = []
    assert complete_checkpoints(checkpoints.directory, warnings.append) == [saved]
    assert warnings == [f"{saved.with_name('step-00000099')}: not used, {MARKER}: belongs to step 20"]


def test_a_flipped_bit_of_the_marker_is_detected(checkpoints, saved):
    marker = saved / MARKER
    original = marker.read_bytes()
    for place in range(len(original)):
        damaged = bytearray(original)
        damaged[place] ^= 1 << place % 7
        marker.write_bytes(damaged)
        found = complete_checkpoints(checkpoints.directory, lambda _: None)
        # a newline that becomes a space changes nothing
        assert not found or json.loads(damaged) == json.loads(original), bytes(damaged)


def test_a_marker_of_an_earlier_version_has_no_hash(checkpoints, saved):
    content = read_json(saved / MARKER)
    del content["sha256"]
    write_json(saved / MARKER, content)
    assert complete_checkpoints(checkpoints.directory) == [saved]


NONSENSE = {
    "list": [], "none": None, "empty": {}, "step": {"progress": {"step": "20"}}, "files": {"files": ["a"]},
    "negative": {"files": {"a.pt": {"bytes": -1, "sha256": "0" * 64}}}, "identity": {"identity": None},
    "outside": {"files": {"../../x": {"bytes": 1, "sha256": "0" * 64}}}, "more": {"surplus": 1},
    "hash": {"files": {"a.pt": {"bytes": 1, "sha256": "0"}}}, "other": {"sha256": "0" * 64},
}  # fmt: skip


@pytest.mark.parametrize("kind", NONSENSE)
def test_an_invalid_marker_is_ignored_with_a_warning_of_one_line(checkpoints, saved, kind):
    content = NONSENSE[kind]
    if content:
        content = read_json(saved / MARKER) | content
    write_json(saved / MARKER, content)
    warnings = []
    assert complete_checkpoints(checkpoints.directory, warnings.append) == []
    (line,) = warnings
    assert line.startswith(f"{saved}: not used, {MARKER}: ")
    assert "\n" not in line


class Killed(BaseException):
    """Ends a save as `kill -9` would, without any clean-up."""


def killed_after(calls, monkeypatch):
    """Let the process die right before or right after one of the calls that change directories."""
    count = itertools.count()

    def fatal(call):
        def work(*arguments, **names):
            if next(count) == calls:
                raise Killed
            done = call(*arguments, **names)
            if next(count) == calls:
                raise Killed
            return done

        return work

    for name in ("rename", "replace", "unlink", "rmdir", "mkdir"):
        monkeypatch.setattr(os, name, fatal(getattr(os, name)))


def weights_of(path):
    (file,) = path.glob("*.pt")
    return torch.load(file, weights_only=True)["module"]["weight"]


@pytest.mark.parametrize("again", [40, 60], ids=["the same step", "another step"])
def test_a_kill_at_any_moment_leaves_the_old_or_the_new_checkpoint(checkpoints, disk, again):
    disk.ready.set()
    checkpoints.settings = CheckpointConfig(every=20, keep=1)
    outcomes = []
    for calls in itertools.count():
        shutil.rmtree(checkpoints.directory, ignore_errors=True)
        old, new = Engine(), Engine()
        checkpoints.save(old, at(40))
        assert checkpoints.finish()
        with pytest.MonkeyPatch.context() as patch:
            killed_after(calls, patch)
            try:
                checkpoints.save(new, RunProgress(again, Position(1, 8)))
                checkpoints.finish()
                survived = True
            except Killed:
                survived = False
        newest = complete_checkpoints(checkpoints.directory, outcomes.append)[0]
        step, weights = checkpoint_step(newest), weights_of(newest)
        is_old = step == 40 and torch.equal(weights, old.module.weight)
        is_new = step == again and torch.equal(weights, new.module.weight)
        assert is_old or is_new
        checkpoints._pending = None
        checkpoints.save(Engine(), at(80))
        assert checkpoints.finish()
        assert [path.name for path in checkpoints.directory.iterdir()] == ["step-00000080"]
        if survived:
            break
    assert calls > 10
    assert outcomes == []
