"""Timers of collectives, with a clock that advances by one second each time it is read; and slow hosts."""

import itertools

import pytest
import torch
import torch.distributed as dist

from bali_ds.training import timers
from bali_ds.training.timers import CommunicationTimer, DeviceTimer, slow_hosts

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
    timer = DeviceTimer(CPU)
    first, second = timer.now(), timer.now()
    timer.record_since(second)
    timer.record_since(first)
    assert timer.read() == [1, 3]
    assert timer.read() == []


@pytest.mark.usefixtures("alone", "ticking")
def test_calls_and_waits_count_whether_or_not_they_are_asynchronous():
    communication = CommunicationTimer(CPU)
    vector = torch.ones(2)
    with communication.running():
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
def test_nothing_is_timed_afterwards():
    communication = CommunicationTimer(CPU)
    with communication.running():
        pass
    vector = torch.ones(2)
    dist.all_reduce(vector)
    assert vector.tolist() == [1, 1]
    assert communication.seconds() == 0


def test_slow_hosts_are_named_by_their_slowest_rank():
    even = [(f"node{number // 2}", 1.0 + number / 100) for number in range(8)]
    assert slow_hosts(even) is None
    line = slow_hosts([*even, ("node9", 1.0), ("node9", 2.0)])
    assert line is not None
    assert "node9 2.000 s" in line
    assert "node1" not in line
