"""Peak memory of a forward and backward pass, measured on the meta device: the model runs without any data."""

import contextlib
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


@dataclass(frozen=True)
class PassMemory:
    """Peak memory of a forward and backward pass in bytes, without weights and batch.

    Attributes:
        with_gradients: peak if all parameter gradients are kept, as at ZeRO stages 0 to 2.
        without_gradients: peak without parameter gradients, which stage 3 reduces during the backward pass.
    """

    with_gradients: int
    without_gradients: int


def pass_memory(
    model: torch.nn.Module, run: Callable[[], torch.Tensor], *, fused_attention: bool = False
) -> PassMemory:
    """Return the peak memory of `run` and of its backward pass.

    Args:
        model: module on the meta device; its gradients are cleared.
        run: function that returns a scalar on the meta device, from which the backward pass starts.
        fused_attention: whether attention stores no matrix of scores, as on GPUs; CPUs store it under dropout.
    """
    allocations = _Allocations()
    with allocations, _FusedAttention() if fused_attention else contextlib.nullcontext():
        torch.autograd.backward(run())  # the method of a tensor would suspend the mode while layers are recomputed
    gradients = {allocations.number(parameter.grad) for parameter in model.parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    return PassMemory(allocations.peak(without=set()), allocations.peak(without=gradients))


class _Allocations(TorchDispatchMode):
    """Log of when each storage that an operation creates is allocated and freed."""

    def __init__(self) -> None:
        super().__init__()
        self._log: list[tuple[int, int]] = []
        self._numbers: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            # transformers asks whether a mask is all ones: it is not, rows are padded
            return False
        result = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            if storage._cdata not in given:
                self._allocated(storage)
        return result

    def number(self, tensor: torch.Tensor) -> int:
        """Return the number of a tensor's storage in the log, -1 if it is not in it."""
        return self._numbers.get(tensor.untyped_storage()._cdata, -1)

    def _allocated(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._numbers:
            return
        number = len(self._log)
        self._numbers[storage._cdata] = number
        self._log.append((number, storage.nbytes()))
        weakref.finalize(storage, self._freed, storage._cdata, number, storage.nbytes())

    def _freed(self, key: int, number: int, size: int) -> None:
        self._numbers.pop(key, None)
        self._log.append((number, -size))

    def peak(self, without: set[int]) -> int:
        """Return the largest number of bytes allocated at one time, not counting the storages in `without`."""
        alive = peak = 0
        for number, change in self._log:
            if number not in without:
                alive += change
                peak = max(peak, alive)
        return peak


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [item.untyped_storage() for item in tree_iter(values) if isinstance(item, torch.Tensor)]


class _FusedAttention(TorchFunctionMode):
    """Mode that gives attention the memory use of FlashAttention (Dao et al., NeurIPS 2022)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return _FusedAttentionShapes.apply(*args[:3])
        return func(*args, **(kwargs or {}))


class _FusedAttentionShapes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        output = torch.empty_like(query)
        normalizers = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, normalizers)
        return output

    @staticmethod
    def backward(ctx: Any, *_gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(saved) for saved in ctx.saved_tensors[:3])
