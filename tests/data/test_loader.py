import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from itertools import islice

import pytest
import torch

from bali_ds.data import reader
from bali_ds.data.batch import Batch
from bali_ds.data.batch_sampler import BatchSampler
from bali_ds.data.loader import Loader, WorkerKilledError
from bali_ds.data.sampler import Position
from bali_ds.data.settings import StreamSettings
from bali_ds.errors import InputError
from tests.data.conftest import write_shards

SETTINGS = StreamSettings(seed=3)


def steps(data, count, *, settings=SETTINGS, **arguments):
    with closing(Loader(*data, settings, **arguments)) as loader:
        return list(islice(loader, count))


def rows(step):
    return [row for micro_batch in step.micro_batches for row in micro_batch.sample_rows.tolist()]


def global_rows(data, count, world_size, **arguments):
    ranks = [steps(data, count, rank=rank, world_size=world_size, **arguments) for rank in range(world_size)]
    batches = []
    for parts in zip(*ranks, strict=True):
        merged = [None] * sum(len(rows(part)) for part in parts)
        for rank, part in enumerate(parts):
            merged[rank::world_size] = rows(part)
        batches.append(merged)
    return batches


def same(first, second):
    """Whether two batches hold the same tensors."""
    if isinstance(first, tuple):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(value, second[name]) for name, value in first.items())
    return all(same(value, getattr(second, name)) for name, value in vars(first).items())


def test_batches_are_pinned_by_the_thread_that_receives_them(data, monkeypatch):
    threads = []

    def pin_memory(batch):
        threads.append(threading.current_thread())
        return batch

    monkeypatch.setattr(Batch, "pin_memory", pin_memory)
    steps(data, 2, global_batch=12, micro_batches=2, workers=1, pin_memory=True)
    assert len(threads) >= 4
    assert threading.main_thread() not in threads


@pytest.mark.parametrize(
    ("world_size", "workers", "micro_batches"), [(1, 1, 3), (2, 0, 1), (2, 2, 1), (3, 0, 2), (3, 2, 1)]
)
def test_global_batches_do_not_depend_on_world_size_and_workers(data, world_size, workers, micro_batches):
    expected = [rows(step) for step in steps(data, 18, global_batch=12)]
    found = global_rows(data, 18, world_size, workers=workers, micro_batches=micro_batches, global_batch=12)
    assert found == expected
    first_epoch = [row for batch in expected[:8] for row in batch]
    assert len(set(first_epoch)) == 8 * 12
    assert set(first_epoch) <= set(range(100))
    assert expected[8:16] != expected[:8]


def test_contents_do_not_depend_on_workers_and_masks_not_on_world_size(data):
    alone = steps(data, 5, global_batch=6, micro_batches=6)
    worked = steps(data, 5, global_batch=6, micro_batches=6, workers=2)
    assert all(map(same, (s.micro_batches for s in alone), (s.micro_batches for s in worked)))
    for rank in range(2):
        for whole, part in zip(
            alone, steps(data, 5, global_batch=6, micro_batches=3, rank=rank, world_size=2), strict=True
        ):
            assert same(whole.micro_batches[rank::2], part.micro_batches), (
                "one passage a micro_batch: the same tensors on any rank"
            )


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_at_any_step_and_with_another_world_size(data, workers):
    whole = steps(data, 18, global_batch=12)
    for stop in (1, 7, 8, 9, 17):
        rest = steps(data, 18 - stop, global_batch=12, workers=workers, start=whole[stop - 1].position_after)
        assert all(same(a.micro_batches, b.micro_batches) for a, b in zip(whole[stop:], rest, strict=True))
        assert [step.position_after for step in rest] == [step.position_after for step in whole[stop:]]
        others = global_rows(data, 3, 3, global_batch=12, start=whole[stop - 1].position_after)
        assert others[: 18 - stop] == [rows(step) for step in whole[stop : stop + 3]]


def test_position_counts_samples_of_all_ranks_and_drops_the_tail(data):
    with closing(Loader(*data, SETTINGS, global_batch=30, rank=1, world_size=2)) as loader:
        assert loader.steps_per_epoch == 3
        positions = [step.position_after for step in islice(loader, 5)]
    assert [(position.epoch, position.samples_seen) for position in positions] == [
        (0, 30), (0, 60), (1, 0), (1, 30), (1, 60),
    ]  # fmt: skip


def test_another_global_batch_goes_on_where_the_run_stood(data):
    before = steps(data, 4, global_batch=12)
    after = steps(data, 2, global_batch=20, start=before[-1].position_after)
    order = [row for step in steps(data, 25, global_batch=4) for row in rows(step)]
    assert [row for step in (*before, *after) for row in rows(step)] == order[:88]


def test_bad_arguments_are_the_users(data):
    for arguments in ({"global_batch": 101}, {"global_batch": 7, "world_size": 2}, {"global_batch": 0}):
        with pytest.raises(InputError):
            Loader(*data, SETTINGS, **arguments)
    with pytest.raises(InputError):
        Loader(*data, SETTINGS, global_batch=4, start=Position(0, 101))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_tar_cut_short_after_opening_is_an_input_error(data, tmp_path, workers, monkeypatch):
    monkeypatch.setattr(reader, "_WAITS", ())
    shards = write_shards(tmp_path / "shards", data[1])
    loader = Loader(shards, data[1], SETTINGS, global_batch=50, workers=0)
    with open(shards.path / shards.shards[3].name, "r+b") as stream:
        stream.truncate(10_000)
    if workers:
        loader = Loader(shards, data[1], SETTINGS, global_batch=50, workers=workers)
    with closing(loader), pytest.raises(InputError, match=shards.shards[3].name):
        list(islice(loader, 3))


def worker_processes(loader):
    return [worker._process for worker in loader._workers]


def test_workers_ignore_the_signals_of_the_process_group_and_end_with_the_loader(data):
    loader = Loader(*data, SETTINGS, global_batch=4, workers=2)
    processes = worker_processes(loader)
    for process in processes:
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
    assert len(list(islice(loader, 20))) == 20
    loader.close()
    assert all(process.poll() is not None for process in processes)


def test_a_killed_worker_is_reported_not_waited_for(data):
    with closing(Loader(*data, SETTINGS, global_batch=4, workers=2)) as loader:
        next(loader)
        worker_processes(loader)[1].kill()
        with pytest.raises(WorkerKilledError, match="worker ended with status -9"):
            list(islice(loader, 50))


def test_a_wait_for_a_worker_that_hangs_has_an_end(data):
    with closing(Loader(*data, SETTINGS, global_batch=4, workers=1)) as loader:
        assert loader.ready(60)
        (process,) = worker_processes(loader)
        process.send_signal(signal.SIGSTOP)
        taken = 0
        while loader.ready(1):
            next(loader)
            taken += 1
        assert taken > 0
        assert str(process.pid) in loader.source
        process.send_signal(signal.SIGCONT)
        assert loader.ready(60)
    assert process.poll() is not None


def test_without_workers_a_wait_has_an_end_too_and_no_step_is_lost(data, monkeypatch):
    expected = [rows(step) for step in steps(data, 6, global_batch=4, settings=SETTINGS)]
    with closing(Loader(*data, SETTINGS, global_batch=4)) as loader:
        goes_on = threading.Event()
        take = BatchSampler.take
        monkeypatch.setattr(BatchSampler, "take", lambda made, numbers: goes_on.wait() and take(made, numbers))
        assert not loader.ready(0.1)
        assert not loader.ready(0.1)
        goes_on.set()
        assert loader.ready(60)
        assert [rows(step) for step in islice(loader, 6)] == expected


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_workers_end_when_the_loaders_process_is_killed_and_leave_nothing(data):
    shards, graph = data
    script = f"""
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.shards.shard_set import ShardSet
from bali_ds.data.loader import Loader, WorkerKilledError
from bali_ds.data.settings import StreamSettings
from bali_ds.data.batch_sampler import BatchSampler
import time
loader = Loader(ShardSet.open({str(shards.path)!r}), KnowledgeGraph.open({str(graph.path)!r}), StreamSettings(),
                global_batch=4, workers=2)
next(loader)
print(*(worker._process.pid for worker in loader._workers), flush=True)
time.sleep(60)
"""
    litter = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    workers = process.stdout.readline().split()
    assert len(workers) == 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in workers)
    if os.path.isdir("/dev/shm"):
        assert not [name for name in set(os.listdir("/dev/shm")) - litter if "bali" in name]


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
