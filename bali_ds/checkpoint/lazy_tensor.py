"""Lazy tensors: tensors of a checkpoint whose values stay in memory-mapped files until they are needed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch

from bali_ds.errors import InputError

CHUNK = 2**20


class FlatValues(Protocol):
    """The values of a tensor, flat and in order, wherever they are."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in the file."""

    def read(self, start: int, length: int) -> Iterator[torch.Tensor]:
        """Yield, in pieces, the `length` values or what there is of them from `start` on."""


class Pieces(tuple[torch.Tensor, ...]):
    """Values that are the concatenation of flat tensors."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first piece."""
        return self[0].dtype if self else torch.float32

    def read(self, start: int, length: int) -> Iterator[torch.Tensor]:
        """Yield the values from `start` on."""
        return stretch_of(self, start, length)


@dataclass(frozen=True)
class PartitionedValues:
    """Values in equal parts of ranks: the values `rank * part` to `(rank + 1) * part - 1` are in the file of a rank.

    Only the files of the parts that are read are opened.

    Attributes:
        rank_tensors: returns the flat tensors of a rank, whose concatenation holds its part.
        ranks: how many there are.
        part: values of a rank, for which its file has room.
        offset: where the part begins in that concatenation.
        start: the first value of this tensor within the parts, counted over all ranks.
    """

    rank_tensors: Callable[[int], Sequence[torch.Tensor]]
    ranks: int
    part: int
    offset: int = 0
    start: int = 0

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first rank's tensors."""
        return self.rank_tensors(0)[0].dtype

    def read(self, start: int, length: int) -> Iterator[torch.Tensor]:
        """Yield the values from `start` on."""
        position, end = self.start + start, self.start + start + length
        while position < min(end, self.ranks * self.part):
            rank, within = divmod(position, self.part)
            count = min(self.part - within, end - position)
            yield from stretch_of(self.rank_tensors(rank), self.offset + within, count)
            position += count


@dataclass(frozen=True)
class LazyTensor:
    """A tensor stored in memory-mapped files.

    Attributes:
        name: of the tensor, for messages.
        shape: of the whole tensor.
        values: its values.
    """

    name: str
    shape: tuple[int, ...]
    values: FlatValues

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in the file."""
        return self.values.dtype

    @property
    def size(self) -> int:
        """The number of values."""
        return prod(self.shape)

    def chunks(self) -> Iterator[torch.Tensor]:
        """Yield the values in order, flat, at most CHUNK at a time."""
        for start in range(0, self.size, CHUNK):
            yield from self._read(start, min(CHUNK, self.size - start))

    def stretch(self, start: int, length: int) -> torch.Tensor:
        """Return the `length` values that begin at `start`, flat, as a copy in memory."""
        pieces = self._read(start, length)
        return torch.cat(pieces) if pieces else torch.empty(0, dtype=self.dtype)

    def tensor(self) -> torch.Tensor:
        """Return the whole tensor as a copy in memory."""
        return self.stretch(0, self.size).view(self.shape)

    def _read(self, start: int, length: int) -> list[torch.Tensor]:
        """Return some values in pieces.

        Raises:
            InputError: there are too few.
        """
        pieces = list(self.values.read(start, length))
        if sum(piece.numel() for piece in pieces) != length:
            raise InputError(f"{self.name}: the checkpoint holds fewer values than its shape {list(self.shape)} needs")
        return pieces

    @classmethod
    def whole(cls, name: str, tensor: torch.Tensor) -> "LazyTensor":
        """Return a lazy tensor of one piece."""
        return cls(name, tuple(tensor.shape), Pieces((tensor.detach().reshape(-1),)))


def stretch_of(flat: Sequence[torch.Tensor], start: int, length: int) -> Iterator[torch.Tensor]:
    """Yield, in pieces, `length` values or what there is of them from `start` of the concatenation of flat tensors."""
    first = 0
    for tensor in flat:
        low, high = max(start - first, 0), min(start + length - first, tensor.numel())
        if low < high:
            yield tensor[low:high]
        first += tensor.numel()
