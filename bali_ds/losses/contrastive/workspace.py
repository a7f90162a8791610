"""Reusable buffers for intermediate results."""

from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

DERIVATIVE_BYTES = 1 << 30
"""Most memory that the derivatives of one stripe of rows take on a GPU."""


@dataclass
class Workspace:
    """One growing buffer for each name.

    Reuse avoids page faults of fresh memory, and fragmentation by large buffers that live briefly.

    Attributes:
        device: where the buffers are.
    """

    device: torch.device
    _buffers: dict[str, Tensor] = field(default_factory=dict)

    def get(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return an uninitialized tensor of a shape; it overwrites the last one of the same name and dtype."""
        size = prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < size:
            buffer = self._buffers[name] = torch.empty(size, dtype=dtype, device=self.device)
        return buffer[:size].view(shape)
