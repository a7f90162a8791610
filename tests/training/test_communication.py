"""A clock that ticks once a look makes every span one second long."""

import itertools

import pytest
import torch
import torch.distributed as dist

from bali_ds.training import timers
from bali_ds.training.timers import Communication, Stopwatch

CPU = torch.device("cpu")


@pytest.fixture
def ticking(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(timers.time, "perf_counter", lambda: next(ticks))


@pytest.fixture
def alone():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("ticking")
def test_a_span_is_read_once():
    watch = Stopwatch(CPU)
    first, second = watch.now(), watch.now()
    watch.since(second)
    watch.since(first)
    assert watch.read() == [1, 3]
    assert watch.read() == []


@pytest.mark.usefixtures("alone", "ticking")
def test_calls_and_waits_count_whether_or_not_they_are_asynchronous():
    communication = Communication(CPU)
    vector = torch.ones(2)
    with communication.watching():
        dist.all_reduce(vector)
        assert communication.seconds() == 2
        work = dist.all_gather_into_tensor(torch.empty(2), vector, async_op=True)
        assert communication.seconds() == 1
        work.wait()
        assert communication.seconds() == 1
        dist.barrier()
        dist.broadcast(vector, src=0)
        assert communication.seconds() == 4
        assert communication.seconds() == 0


@pytest.mark.usefixtures("alone")
def test_nothing_is_timed_any_more_afterwards():
    communication = Communication(CPU)
    with communication.watching():
        pass
    vector = torch.ones(2)
    dist.all_reduce(vector)
    assert vector.tolist() == [1, 1]
    assert communication.seconds() == 0
