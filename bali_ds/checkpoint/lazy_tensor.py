"""Lazy tensors: tensors of a checkpoint whose values stay in memory-mapped files until they are needed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod

import torch

from bali_ds.errors import InputError

CHUNK = 2**20


@dataclass(frozen=True)
class LazyTensor:
    """A tensor stored in pieces in memory-mapped files.

    Attributes:
        shape: of the whole tensor.
        pieces: flat tensors whose concatenation is the tensor, without padding.
    """

    shape: tuple[int, ...]
    pieces: tuple[torch.Tensor, ...]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in the file."""
        return self.pieces[0].dtype if self.pieces else torch.float32

    @property
    def size(self) -> int:
        """The number of values."""
        return prod(self.shape)

    def chunks(self) -> Iterator[torch.Tensor]:
        """Yield the values in order, flat, at most CHUNK at a time."""
        for piece in self.pieces:
            yield from piece.split(CHUNK)

    def stretch(self, start: int, length: int) -> torch.Tensor:
        """Return the `length` values that begin at `start`, flat, as a copy in memory."""
        return torch.cat(list(stretch_of(self.pieces, start, length)))

    def tensor(self) -> torch.Tensor:
        """Return the whole tensor as a copy in memory."""
        flat = torch.cat(self.pieces) if self.pieces else torch.empty(0)
        return flat.view(self.shape)

    @classmethod
    def whole(cls, tensor: torch.Tensor) -> "LazyTensor":
        """Return a lazy tensor of one piece."""
        return cls(tuple(tensor.shape), (tensor.detach().reshape(-1),))

    @classmethod
    def cut(cls, name: str, shape: tuple[int, ...], flat: Sequence[torch.Tensor], start: int = 0) -> "LazyTensor":
        """Return the tensor whose values begin at `start` of the concatenation of flat tensors.

        Raises:
            InputError: there are too few values; the message begins with `name`.
        """
        pieces = tuple(stretch_of(flat, start, prod(shape)))
        if sum(piece.numel() for piece in pieces) != prod(shape):
            raise InputError(f"{name}: the checkpoint holds fewer values than its shape {list(shape)} needs")
        return cls(shape, pieces)


def stretch_of(flat: Sequence[torch.Tensor], start: int, length: int) -> Iterator[torch.Tensor]:
    """Yield, in pieces, `length` values or what there is of them from `start` of the concatenation of flat tensors."""
    ends = list(accumulate(tensor.numel() for tensor in flat))
    for tensor, end in zip(flat, ends, strict=True):
        first = end - tensor.numel()
        low, high = max(start, first), min(start + length, end)
        if low < high:
            yield tensor[low - first : high - first]
