"""Faults for tests to inject: functions that one or all ranks call right before they train."""

import errno
import os
import resource
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import psutil
import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

from bali_ds.data.loader import Loader
from bali_ds.model.aligner import Aligner

BATCH = 8
"""Passages of a global batch in the runs that faults are injected into."""

Action = Callable[[], None]
Fault = Callable[[], None]


def no_fault() -> None:
    pass


def own_rank() -> int:
    return int(os.environ["RANK"])


def on_rank(rank: int, fault: Fault) -> Fault:
    """Inject a fault into one rank only."""

    def inject() -> None:
        if own_rank() == rank:
            fault()

    return inject


# Actions: what happens when a fault strikes.


def fail(error: Exception) -> Action:
    def action() -> None:
        raise error

    return action


def raise_value_error() -> None:
    raise ValueError("this value was not foreseen")


def hang() -> None:
    time.sleep(3600)


def signal_self(number: signal.Signals) -> Action:
    def action() -> None:
        os.kill(os.getpid(), number)
        time.sleep(0.1)

    return action


def truncate_shards() -> None:
    """Cut short the training tars of this rank's host, which are mapped."""
    for tar in Path("shards").glob("train-*.tar"):
        os.truncate(tar, 512)


def signal_workers(number: signal.Signals, marker: Path) -> Action:
    """Send a signal to this rank's loader workers, once; then create the marker."""

    def action() -> None:
        if not marker.exists():
            for worker in psutil.Process().children():
                worker.send_signal(number)
            marker.touch()

    return action


# Faults: when it strikes.


def before_call(target: Any, name: str, action: Action, calls: int = 1) -> Fault:
    """Act before the `calls`-th call of a function and before all later ones."""

    def inject() -> None:
        function, called = getattr(target, name), [0]

        def replaced(*arguments: Any, **named: Any) -> Any:
            called[0] += 1
            if called[0] >= calls:
                action()
            return function(*arguments, **named)

        setattr(target, name, replaced)

    return inject


def before_step(step: int, action: Action, *, of_rank: int | None = None) -> Fault:
    """Act when a rank, or every rank, has loaded the samples of a step; the first step is 1."""

    def inject() -> None:
        load = Loader.__next__

        def replaced(loader: Loader) -> Any:
            batch = load(loader)
            if batch.position_after.samples_seen == step * BATCH and of_rank in (None, own_rank()):
                action()
            return batch

        Loader.__next__ = replaced  # type: ignore[method-assign]

    return inject


def scaled_loss(step: int, factor: float, *, of_rank: int) -> Fault:
    """Multiply the loss of one rank by a factor whenever it trains with the samples of a step."""
    samples_seen = [0]

    def inject() -> None:
        load, forward = Loader.__next__, Aligner.forward

        def recorded(loader: Loader) -> Any:
            batch = load(loader)
            samples_seen[0] = batch.position_after.samples_seen
            return batch

        def scaled(aligner: Aligner, micro_batches: Any) -> Any:
            loss, outputs = forward(aligner, micro_batches)
            if samples_seen[0] == step * BATCH and own_rank() == of_rank and torch.is_grad_enabled():
                loss = loss * factor
                outputs["loss"] = loss.detach()
            return loss, outputs

        Loader.__next__, Aligner.forward = recorded, scaled  # type: ignore[method-assign]

    return inject


def failing_writes(fails: Callable[[int, Path], bool]) -> Fault:
    """Let rank 1's writes of checkpoint files fail as on a full disk.

    Args:
        fails: gets the number of the write, from 1, and the path of the file.
    """

    def inject() -> None:
        write, writes = TorchCheckpointEngine.save, [0]

        def save(engine: Any, state_dict: Any, path: str) -> None:
            writes[0] += 1
            if own_rank() == 1 and fails(writes[0], Path(path)):
                Path(path).write_bytes(b"half a file")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(engine, state_dict, path)

        TorchCheckpointEngine.save = save

    return inject


def full_disk() -> None:
    """Let writes fail that make a file longer than the ranks' own logs."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 15, 1 << 15))


def missing_rank(rank: int) -> Fault:
    """One rank never joins; the others wait for 2 s in place of minutes."""

    def inject() -> None:
        if own_rank() == rank:
            os._exit(0)
        deepspeed.init_distributed = partial(deepspeed.init_distributed, timeout=timedelta(seconds=2))

    return inject


def failing_workers(folder: Path) -> Fault:
    """Let the loader workers of this rank raise after their first step."""

    def inject() -> None:
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(
            "import sys\n"
            "if 'bali_ds.data.worker' in sys.orig_argv:\n"
            "    import bali_ds.data.batch_sampler as steps\n"
            "    take = steps.BatchSampler.take\n"
            "    def take_or_fail(made, numbers):\n"
            "        if numbers[0]:\n"
            "            raise ValueError('this value was not foreseen')\n"
            "        return take(made, numbers)\n"
            "    steps.BatchSampler.take = take_or_fail\n"
        )
        os.environ["PYTHONPATH"] = f"{os.environ['PYTHONPATH']}{os.pathsep}{folder}"

    return inject
