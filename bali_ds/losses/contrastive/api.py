"""The public loss: views of every rank in, one global scalar and exact gradients out."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bali_ds.distributed import Ranks
from bali_ds.losses.contrastive.communication import Exchange, choose_algorithm
from bali_ds.losses.contrastive.computation import LossComputation, LossResult
from bali_ds.losses.contrastive.formulas import FORMULAS
from bali_ds.losses.contrastive.sorted_views import gather_layout, normalize_rows, normalize_rows_backward

KERNELS = ("auto", "torch", "native", "triton")
TILE_SIZES = {"cpu": 512, "cuda": 4096}  # a tile fits a CPU's second-level cache; a GPU wants few launches


def contrastive_loss(
    queries: Tensor,
    keys: Tensor,
    logit_scale: Tensor | float,
    *,
    query_concept_ids: Tensor,
    key_concept_ids: Tensor,
    kind: str = "ntxent",
    logit_bias: Tensor | float = 0.0,
    group: dist.ProcessGroup | Ranks | None = None,
    communication: str = "auto",
    communication_dtype: torch.dtype | None = None,
    tile_size: int | None = None,
    kernels: str = "auto",
) -> Tensor:
    """Return the contrastive loss over the views of all ranks, the same scalar on every rank; a collective call.

    Similarities are cosines times `logit_scale`, so views need not be normalized. Views of one concept are never
    negatives of each other. Gradients are scaled so that averaging them over ranks, as data parallelism does, gives the
    gradient of the global loss, also for `logit_scale` and `logit_bias`. They are computed in the forward pass, tile by
    tile; besides the views and their gradients only tiles are held in memory. Settings must be equal on all ranks, the
    number of views need not be.

    Args:
        queries: float [n_q, d]; n_q may be 0.
        keys: float [n_k, d]; n_k may be 0.
        logit_scale: the inverse temperature, positive; a tensor of one element gets a gradient.
        query_concept_ids: int64 [n_q], the label of each query.
        key_concept_ids: int64 [n_k].
        kind: "ntxent" and "multi_similarity" compare all views with each other; "clip", "supcon", "marginal" and
            "sigmoid" compare queries with keys. `bali_ds.losses.contrastive.formulas` has formulas and sources.
        logit_bias: added to similarities, for "sigmoid" alone; a tensor of one element gets a gradient.
        group: the ranks that share the loss; None for the default group. A `Ranks` counts the bytes that are sent.
        communication: "gather", "ring" or "column", see `bali_ds.losses.contrastive.communication`; "auto" gathers
            if that takes at most 1 GiB, else it takes the ring.
        communication_dtype: dtype in which normalized features are held and sent, for instance torch.bfloat16; the
            loss is that of the rounded features. None: float32, or float64 for float64 features.
        tile_size: rows and columns of a tile; None: 512 on CPUs, 4,096 on GPUs.
        kernels: what computes float32 tiles: "torch", "native" on a CPU with AVX-512, "triton" on a GPU; "auto" is
            "native" where that is available and else "torch".

    Returns:
        float32 scalar (float64 for float64 features); 0, with gradients of 0, if there is nothing to contrast.

    Raises:
        ValueError: an unknown `kind`, `communication` or `kernels`, kernels that are not available, or a number of
            concept ids that differs from the number of views.
    """
    if kind not in FORMULAS:
        raise ValueError(f"kind: {kind!r} is not one of {', '.join(FORMULAS)}")
    if kernels not in KERNELS:
        raise ValueError(f"kernels: {kernels!r} is not one of {', '.join(KERNELS)}")
    for name, views, ids in (("queries", queries, query_concept_ids), ("keys", keys, key_concept_ids)):
        if len(views) != len(ids):
            raise ValueError(f"{len(views)} {name} have {len(ids)} concept ids; give one for each")
    scale, bias = (torch.as_tensor(value, device=queries.device) for value in (logit_scale, logit_bias))
    inputs = (queries, keys, scale, bias)
    settings = _Settings(
        kind, (query_concept_ids, key_concept_ids), group if isinstance(group, Ranks) else Ranks.of(group),
        communication, communication_dtype, tile_size, kernels,
        with_gradients=torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs),
    )  # fmt: skip
    with torch.autocast(queries.device.type, enabled=False):
        loss: Tensor = _Contrastive.apply(*inputs, settings)
    return loss


@dataclass
class _Settings:
    kind: str
    concept_ids: tuple[Tensor, Tensor]
    ranks: Ranks
    communication: str
    communication_dtype: torch.dtype | None
    tile_size: int | None
    kernels: str
    with_gradients: bool


class _Contrastive(torch.autograd.Function):
    """Computes loss and gradients in the forward pass; the backward pass multiplies by the upstream scalar."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, scale: Tensor, bias: Tensor, settings: _Settings) -> Tensor:
        ranks, views, ids = settings.ranks, (queries, keys), settings.concept_ids
        dtype = torch.float64 if torch.float64 in (queries.dtype, keys.dtype) else torch.float32
        formula = FORMULAS[settings.kind](scale.double().reshape(()), bias.double().reshape(()))
        sizes = ranks.all_gather_counts(len(queries), len(keys), int(settings.with_gradients), device=queries.device)
        if formula.joint:
            sides: list[tuple[Tensor, ...]] = [views]
            layouts = [gather_layout(0, torch.cat(ids), [q + k for q, k, _ in sizes], ranks)]
        else:
            sides = [(queries,), (keys,)]
            layouts = [gather_layout(side, ids[side], [size[side] for size in sizes], ranks) for side in (0, 1)]
        features, inverse = [], []
        for tensors, layout in zip(sides, layouts, strict=True):
            unit, lengths = normalize_rows(tensors, layout.orders[ranks.rank], settings.communication_dtype or dtype)
            features.append(unit)
            inverse.append(lengths)
        del unit
        algorithm = choose_algorithm(settings.communication, ranks, layouts, queries.shape[1])
        exchange = Exchange(ranks, layouts, features, algorithm)
        tile_size = settings.tile_size or TILE_SIZES.get(queries.device.type, 1024)
        with_gradients = any(wanted for _, _, wanted in sizes)
        result = LossComputation(formula, float(scale), exchange, tile_size, settings.kernels, dtype).run(
            with_gradients
        )
        if with_gradients:
            ctx.save_for_backward(*_input_gradients(result, exchange, inverse, views, scale, bias))
        return result.loss.to(dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return (*((gradient * upstream).to(gradient.dtype) for gradient in ctx.saved_tensors), None)


def _input_gradients(
    result: LossResult,
    exchange: Exchange,
    inverse: list[Tensor],
    views: tuple[Tensor, Tensor],
    scale: Tensor,
    bias: Tensor,
) -> tuple[Tensor, ...]:
    """Return the gradients by queries, keys, scale and bias, scaled for averaging over ranks."""
    ranks = exchange.ranks
    factor = result.factor * ranks.world_size
    radial = result.loss.new_zeros(())
    gradients: list[Tensor] = []
    while result.gradients:  # lists are emptied, so that each tensor is freed once it is used
        gradient, features = result.gradients.pop(0), exchange.features.pop(0)
        radial += normalize_rows_backward(gradient, features, inverse[len(gradients)], factor)
        del features
        order = torch.from_numpy(exchange.layouts[len(gradients)].orders[ranks.rank]).to(gradient.device)
        gradients.append(torch.empty_like(gradient).index_copy_(0, order, gradient))
    both = gradients if len(gradients) == 2 else gradients[0].split([len(rows) for rows in views])
    by_views = (gradient.to(rows.dtype) for gradient, rows in zip(both, views, strict=True))
    by_scale = result.scale_derivative
    if by_scale is None:
        # Similarities are of degree 2 in the unit features, so the sum of s * dL/ds is half that of <x, dL/dx>.
        by_scale = ranks.all_reduce_sum(radial) / (2 * ranks.world_size)
    by_scale = by_scale / scale.double().reshape(())
    return (
        *by_views,
        by_scale.to(scale.dtype).reshape(scale.shape),
        result.bias_gradient.to(bias.dtype).reshape(bias.shape),
    )
