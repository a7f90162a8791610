"""The process group of a job: the ranks join at its start and end together, each with the same error.

This module needs torch and DeepSpeed only: the error that a rank reports may be that anything else cannot be imported.
"""

import logging
import os
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Self

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from bali_ds.distributed import Ranks, reduction_groups
from bali_ds.errors import FAILED, MISTAKE, InputError, LostRank, RankFailed, RunEnded, exit_status, first_line
from bali_ds.library_internals import disable_shared_memory_collectives
from bali_ds.network_interface import choose_interface

logger = logging.getLogger(__name__)

EXITING = threading.Event()
"""Set once the main thread is about to exit with an error. The launcher sends SIGTERM to the ranks that still run, and
other ranks post the errors that they exit with: neither may replace that error."""

_LAZY = "TORCH_GLOO_LAZY_INIT"
_ALLOCATOR_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
# oneDNN, and torch that calls it, each keep the code of their last 1,024 matrix products, by shape. Batches have shapes
# of their own, so that most of it is never used again: in bf16 a 6-layer encoder of width 384 grows by 13 MB with each
# step of MedMentions, by 5 MB with 64 products in the first cache and not with 64 in both, at the same speed.
_CACHES_OF_PRODUCTS = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Join the ranks that the launcher started; a process without a launcher is the only rank.

    Raises:
        InputError: the port at which they meet is taken.
        LostRank: some did not join within DEEPSPEED_TIMEOUT minutes, 10 by default, or one was lost in the block.
    """
    _set_mpi_environment()
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "127.0.0.1")):
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_PORT", "29500")
    if interface := choose_interface():
        logger.info("hosts are connected by %s (GLOO_SOCKET_IFNAME chooses another interface)", interface)
    accelerator = get_accelerator()
    device = torch.device("cpu")
    if accelerator.device_name() != "cpu":
        _let_segments_grow()
        accelerator.set_device(int(os.environ["LOCAL_RANK"]))
        device = torch.device(accelerator.current_device_name())
    else:
        for name in _CACHES_OF_PRODUCTS:
            os.environ.setdefault(name, "64")
        disable_shared_memory_collectives()
    # rank 0 serves two connections of every rank: over a thousand files at 512 ranks
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        deepspeed.init_distributed(dist_backend=accelerator.communication_backend_name(), verbose=False)
    except dist.DistError as error:
        port = os.environ["MASTER_PORT"]
        if "EADDRINUSE" in str(error):
            raise InputError(
                f"port {port}: is in use on this host, perhaps by another run; name a free one: "
                "deepspeed --master_port PORT launch/train.py ..., or MASTER_PORT without a launcher"
            ) from error
        raise LostRank(
            f"not all {os.environ['WORLD_SIZE']} ranks met at {os.environ['MASTER_ADDR']}:{port} in time: "
            f"{first_line(error)}"
        ) from error
    try:
        own = os.environ.get(_LAZY)
        os.environ[_LAZY] = "1"  # read when a group is made; groups of DeepSpeed stay as they are
        try:
            ranks = _host_ranks(device)
        finally:
            if own is None:
                del os.environ[_LAZY]
            else:
                os.environ[_LAZY] = own
        ranks.barrier()  # connects the ranks that exchange numbers while all of them are there
        yield ranks
    except Exception as error:
        if lost := lost_rank(error):
            raise lost from error
        raise
    finally:
        # Without this a rank aborts at exit and a finished run looks like a failed one.
        dist.destroy_process_group()


def _let_segments_grow() -> None:
    """Let torch extend segments of memory unless the user has settings of their own; CUDA reads them as it starts.

    Batches differ in length: segments of fixed sizes would keep memory that no tensor fits into.
    """
    if not any(name in os.environ for name in _ALLOCATOR_SETTINGS):
        os.environ[_ALLOCATOR_SETTINGS[0]] = "expandable_segments:True"


def _host_ranks(device: torch.device) -> Ranks:
    """Return all ranks, with gloo groups that connect two of them when they first exchange something.

    By itself gloo connects all pairs: over a thousand ranks exceed the usual limit of open files.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    host, members = dist.new_group(backend="gloo"), reduction_groups(rank, world_size)
    stages: list[dist.ProcessGroup | None] = []
    if len(members) > 1:  # each group is made by its members alone
        stages = [dist.new_group(each, backend="gloo", use_local_synchronization=True) for each in members]
    return Ranks(rank, world_size, device=device, host=host, stages=tuple(stages))


def lost_rank(error: Exception) -> LostRank | None:
    """Return what to raise in place of the error of a collective call that failed because another rank is gone.

    Neither gloo nor NCCL has an exception type for that; gloo's messages name the file of its transport.
    """
    message = str(error)
    if not isinstance(error, RuntimeError):
        return None
    if isinstance(error, dist.DistNetworkError) or "gloo/transport" in message or "ncclRemoteError" in message:
        return LostRank(f"lost the connection to another rank ({first_line(error)}); the same command resumes the run")
    return None


def _set_mpi_environment() -> None:
    """Give the ranks of OpenMPI's mpirun the variables that torch reads; rank 0's MASTER_ADDR is used if it is set."""
    if "RANK" in os.environ or "OMPI_COMM_WORLD_RANK" not in os.environ:
        return
    from mpi4py import MPI

    port = int(os.environ.get("MASTER_PORT", "29500"))
    chosen = MPI.COMM_WORLD.bcast(os.environ.get("MASTER_ADDR"))
    deepspeed.comm.mpi_discovery(distributed_port=port, verbose=False)
    if chosen:
        os.environ["MASTER_ADDR"] = chosen
    # DeepSpeed counts by host name, which hosts may share
    os.environ["LOCAL_RANK"] = os.environ["OMPI_COMM_WORLD_LOCAL_RANK"]
    # Without this, mpirun ends all ranks as soon as one exits, and rank 0 exits last.
    MPI.Finalize()


class RankError(NamedTuple):
    """The error of a rank.

    The smallest of several is the one to report: unforeseen errors come before mistakes, these before interruptions.
    """

    status: int
    rank: int
    host: str
    line: str

    @classmethod
    def of(cls, error: Exception, rank: int) -> Self:
        """Return the error of this process."""
        line = str(error)
        if not isinstance(error, InputError | RunEnded):
            name = type(error).__name__
            summary = f"{name}: {first_line(error)}" if str(error).strip() else name
            line = f"{summary} (traceback in the output of that rank)"
        return cls(exit_status(error), rank, socket.gethostname(), line)

    def __str__(self) -> str:
        return f"rank {self.rank} on host {self.host}: {self.line}"

    def exception(self, line: str | None = None) -> Exception:
        """Return the exception that another rank raises for this error, with `str(self)` as its line by default."""
        line = line or str(self)
        return InputError(line) if self.status == MISTAKE else RankFailed(line, self.status)


def all_gather_errors(ranks: Ranks, own: RankError | None) -> list[RankError]:
    """Return the errors of all ranks that have one, in rank order; a collective call over host memory."""
    if not ranks.all_reduce_max(own is not None):
        return []
    return [error for error in ranks.all_gather_object(own) if error]


@contextmanager
def raise_on_every_rank(ranks: Ranks) -> Iterator[None]:
    """Raise on every rank what any rank raises in the block; the end of the block is a collective call.

    The block must not contain collective calls: a rank that fails would leave the others waiting in them.

    Raises:
        InputError: a rank raised one; the message names the rank and its host unless all ranks raised the same.
        RankFailed: another rank raised anything else. The rank itself raises its own error.
    """
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        own = error
    if errors := all_gather_errors(ranks, RankError.of(own, ranks.rank) if own else None):
        EXITING.set()
        first = min(errors)
        if own and exit_status(own) == first.status == FAILED:
            raise own
        everywhere = len(errors) == ranks.world_size and all(error.line == first.line for error in errors)
        raise first.exception(first.line if everywhere else None) from own


def raise_after_joining(error: Exception) -> None:
    """Join the ranks that start a run, and raise on all of them an error that this one met before it could join."""
    with joined_ranks() as ranks, raise_on_every_rank(ranks):
        raise error
