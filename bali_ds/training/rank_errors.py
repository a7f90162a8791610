"""Errors of one rank that end all of them: every rank raises what the first one met, and all exit alike."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Self

import torch.distributed as dist

from bali_ds.distributed import Ranks
from bali_ds.errors import FAILED, MISTAKE, InputError, RankFailed, RunEnded, exit_status
from bali_ds.training.joining import joined_ranks

LEAVING = threading.Event()
"""Set once the main thread is on its way out with an error. The launcher sends SIGTERM to the ranks that have not left
yet, and other ranks post the errors that they leave with: neither must replace it."""


class RankError(NamedTuple):
    """The error of a rank.

    The least of several is the one to report: unforeseen errors come before mistakes, these before interruptions.
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
            summary = f"{type(error).__name__}: {line}".strip().splitlines()[0]
            line = f"{summary} (traceback in the output of that rank)"
        return cls(exit_status(error), rank, socket.gethostname(), line)

    def __str__(self) -> str:
        return f"rank {self.rank} on host {self.host}: {self.line}"

    def exception(self, line: str | None = None) -> Exception:
        """Return what another rank raises for it, with its own line by default."""
        line = line or str(self)
        return InputError(line) if self.status == MISTAKE else RankFailed(line, self.status)


def all_gather_errors(ranks: Ranks, own: RankError | None) -> list[RankError | None]:
    """Return the error of every rank, in rank order; a collective call over host memory."""
    errors: list[RankError | None] = [None] * ranks.world_size
    dist.all_gather_object(errors, own, group=ranks.host)
    return errors


@contextmanager
def raise_on_every_rank(ranks: Ranks) -> Iterator[None]:
    """Raise on every rank what any rank raises in the block; the end of the block is a collective call.

    The block itself must not contain collective calls: a rank that fails would leave the others waiting in them.

    Raises:
        InputError: a rank raised one; the message names the rank and its host unless all ranks raised the same.
        RankFailed: another rank raised anything else. The rank itself raises its own error.
    """
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        own = error
    errors = all_gather_errors(ranks, RankError.of(own, ranks.rank) if own else None)
    if met := [error for error in errors if error]:
        LEAVING.set()
        first = min(met)
        if own and exit_status(own) == first.status == FAILED:
            raise own
        everywhere = all(error and error.line == first.line for error in errors)
        raise first.exception(first.line if everywhere else None) from own


def raise_after_joining(error: Exception) -> None:
    """Join the ranks that start a run and raise on all of them an error that this one met before it could join.

    This module needs torch and DeepSpeed only: the error may be that anything else cannot be imported.
    """
    with joined_ranks() as ranks, raise_on_every_rank(ranks):
        raise error
