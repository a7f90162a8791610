"""Joins the processes that a launcher started into one job."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from bali_ds.distributed import Ranks
from bali_ds.errors import InputError, LostRank


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Join the ranks that the launcher started, or stand alone when it started none.

    Raises:
        InputError: the port at which they meet is taken.
        LostRank: some did not come within DEEPSPEED_TIMEOUT minutes, 10 by default, or one was lost in the block.
    """
    _adopt_mpirun()
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "127.0.0.1")):
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_PORT", "29500")
    accelerator = get_accelerator()
    device = torch.device("cpu")
    if accelerator.device_name() != "cpu":
        accelerator.set_device(int(os.environ["LOCAL_RANK"]))
        device = torch.device(accelerator.current_device_name())
    else:
        # The shared-memory collectives are compiled at first use, behind a lock that outlives a killed build.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    try:
        deepspeed.init_distributed(dist_backend=accelerator.communication_backend_name(), verbose=False)
    except dist.DistError as error:
        port = os.environ["MASTER_PORT"]
        if "EADDRINUSE" in str(error):
            raise InputError(
                f"port {port}: is taken on this host, by another run perhaps; name a free one: "
                "deepspeed --master_port PORT launch/train.py ..., or MASTER_PORT without a launcher"
            ) from error
        raise LostRank(
            f"not all {os.environ['WORLD_SIZE']} ranks met at {os.environ['MASTER_ADDR']}:{port} in time: "
            f"{str(error).strip().splitlines()[0]}"
        ) from error
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), device=device, host=dist.new_group(backend="gloo"))
    except Exception as error:
        if lost := lost_rank(error):
            raise lost from error
        raise
    finally:
        # Without this a rank aborts at exit and a finished run looks like a failed one.
        dist.destroy_process_group()


def lost_rank(error: Exception) -> LostRank | None:
    """Return what to raise in place of the error of a collective call, if that failed because another rank is gone.

    Neither gloo nor NCCL has an exception type of its own for that; gloo names the file of its transport.
    """
    message = str(error)
    if not isinstance(error, RuntimeError):
        return None
    if isinstance(error, dist.DistNetworkError) or "gloo/transport" in message or "ncclRemoteError" in message:
        summary = message.strip().splitlines()[0]
        return LostRank(f"lost the connection to another rank ({summary}); the same command resumes the run")
    return None


def _adopt_mpirun() -> None:
    """Give the ranks of OpenMPI's mpirun the variables that torch knows; rank 0's MASTER_ADDR counts, if it has one."""
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
    # mpirun ends all ranks when one leaves without this, and the first is the last to leave
    MPI.Finalize()
