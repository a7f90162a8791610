"""A tensor of a checkpoint, in pieces that stay in their files until they are wanted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod

import torch

from bali_ds.errors import InputError

CHUNK = 2**20


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that lies in pieces in memory-mapped files.

    Attributes:
        shape: of the whole.
        pieces: flat tensors that make it up in order, padding left out.
    """

    shape: tuple[int, ...]
    pieces: tuple[torch.Tensor, ...]

    @property
    def dtype(self) -> torch.dtype:
        """The stored type."""
        return self.pieces[0].dtype if self.pieces else torch.float32

    @property
    def size(self) -> int:
        """How many values there are."""
        return prod(self.shape)

    def chunks(self) -> Iterator[torch.Tensor]:
        """Yield the values in order, flat, at most CHUNK at once."""
        for piece in self.pieces:
            yield from piece.split(CHUNK)

    def stretch(self, start: int, length: int) -> torch.Tensor:
        """Return `length` values from `start` on, flat, a copy in memory."""
        return torch.cat(list(stretch_of(self.pieces, start, length)))

    def tensor(self) -> torch.Tensor:
        """Return the whole tensor, a copy in memory."""
        flat = torch.cat(self.pieces) if self.pieces else torch.empty(0)
        return flat.view(self.shape)

    @classmethod
    def whole(cls, tensor: torch.Tensor) -> "LazyTensor":
        """Return a tensor that lies in one piece."""
        return cls(tuple(tensor.shape), (tensor.detach().reshape(-1),))

    @classmethod
    def cut(cls, name: str, shape: tuple[int, ...], flat: Sequence[torch.Tensor], start: int = 0) -> "LazyTensor":
        """Return the tensor whose values begin at `start` of the concatenation of flat tensors.

        Raises:
            InputError: they hold too few, with `name`.
        """
        pieces = tuple(stretch_of(flat, start, prod(shape)))
        if sum(piece.numel() for piece in pieces) != prod(shape):
            raise InputError(f"{name}: the checkpoint holds fewer values than its shape {list(shape)} says")
        return cls(shape, pieces)


def stretch_of(flat: Sequence[torch.Tensor], start: int, length: int) -> Iterator[torch.Tensor]:
    """Yield what lies from `start` on in the concatenation of flat tensors, in pieces, at most `length` values."""
    ends = list(accumulate(tensor.numel() for tensor in flat))
    for tensor, end in zip(flat, ends, strict=True):
        first = end - tensor.numel()
        low, high = max(start, first), min(start + length, end)
        if low < high:
            yield tensor[low - first : high - first]
