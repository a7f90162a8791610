"""What `bali_ds.model.fused_kernels` allocates, without the kernels: for models on the meta device, without Triton."""

from typing import NamedTuple

import torch
from torch import Tensor


class NormGradients(NamedTuple):
    """Gradients of `residual_norm`.

    Attributes:
        residual: half precision [T, d].
        update: half precision [T, d]; the tensor of `residual` where nothing is dropped.
        weight: half precision [d].
        bias: half precision [d].
        update_sum: half precision [d], the sum of `update` over tokens, the gradient by a bias that was added to it.
    """

    residual: Tensor
    update: Tensor
    weight: Tensor
    bias: Tensor
    update_sum: Tensor


def residual_norm(
    update: Tensor, _residual: Tensor, _weight: Tensor, _bias: Tensor, _seed: Tensor, _epsilon: float, _dropout: float
) -> tuple[Tensor, Tensor]:
    """Return empty tensors of the shapes of a sum and of its norm."""
    return torch.empty_like(update), torch.empty_like(update)


def residual_norm_gradients(
    _gradient: Tensor, total: Tensor, _weight: Tensor, _seed: Tensor, _epsilon: float, dropout: float
) -> NormGradients:
    """Return empty tensors of the shapes of the gradients."""
    residual = torch.empty_like(total)
    update = torch.empty_like(total) if dropout else residual
    return NormGradients(residual, update, *total.new_empty(3, total.shape[1]).unbind())


def gelu_gradients(gradient: Tensor, _before: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient, which the kernel overwrites, and an empty vector."""
    return gradient, column_sums(gradient)


def column_sums(values: Tensor) -> Tensor:
    """Return an empty vector of the number of columns."""
    return values.new_empty(values.shape[1])
