"""Memory for what comes and goes: fresh pages cost time, large pieces between small ones that stay tear the heap."""

from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor


@dataclass
class Scratch:
    """One piece of memory for each use, as large as that has needed so far.

    Attributes:
        device: where it is.
    """

    device: torch.device
    _pieces: dict[str, Tensor] = field(default_factory=dict)

    def get(self, use: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return memory of a shape, without a value; what `use` had before is lost. A use has one dtype."""
        size = prod(shape)
        piece = self._pieces.get(use)
        if piece is None or len(piece) < size:
            piece = self._pieces[use] = torch.empty(size, dtype=dtype, device=self.device)
        return piece[:size].view(shape)
