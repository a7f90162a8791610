"""The public loss: views of every rank in, one global scalar and exact gradients out."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from bali_ds.distributed import Ranks
from bali_ds.losses.contrastive.communication import Exchange
from bali_ds.losses.contrastive.communication_cost import CPU, H100, SCHEDULES, LossSizes, choose_schedule
from bali_ds.losses.contrastive.computation import LossComputation, LossResult
from bali_ds.losses.contrastive.formulas import FORMULAS, LossFormula
from bali_ds.losses.contrastive.sorted_views import ViewLayout, gather_layout, normalize_rows, normalize_rows_backward
from bali_ds.losses.contrastive.tiled_computation import TiledComputation

COMMUNICATIONS = ("auto", *SCHEDULES)
KERNELS = ("auto", "torch", "native", "triton")
_TILE_SIZE = 512  # a tile fits a CPU's second-level cache
_HAS_TRITON = importlib.util.find_spec("triton") is not None


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
    number of views need not be. On a GPU with Triton, and one rank, nothing waits for the device.

    Args:
        queries: float [n_q, d]; n_q may be 0.
        keys: float [n_k, d]; n_k may be 0.
        logit_scale: the inverse temperature, positive; a tensor of one element gets a gradient.
        query_concept_ids: int64 [n_q], the label of each query.
        key_concept_ids: int64 [n_k].
        kind: "ntxent", "multi_similarity" and "sapbert" compare all views with each other; "clip", "supcon",
            "marginal" and "sigmoid" compare queries with keys. `bali_ds.losses.contrastive.formulas` has formulas and
            sources.
        logit_bias: added to similarities, for "sigmoid" alone; a tensor of one element gets a gradient.
        group: the ranks that share the loss; None for the default group. A `Ranks` counts the bytes that are sent.
        communication: "gather", "ring" or "hierarchical" (which needs `Ranks` with a `node`), see
            `bali_ds.losses.contrastive.communication`; "auto" is the fastest that fits into memory by
            `bali_ds.losses.contrastive.communication_cost`.
        communication_dtype: dtype in which normalized features are held and sent, for instance torch.bfloat16; the
            loss is that of the rounded features. None: float64 for float64 features; bfloat16 if both are bfloat16
            and Triton kernels compute; else float32.
        tile_size: rows and columns of a tile, or rows that Triton kernels process at a time, rounded to a multiple of
            128; None: 512, or as many as 1 GiB of derivatives allows.
        kernels: what computes: "torch", "native" on a CPU with AVX-512, "triton" on a GPU; "auto" is "triton" or
            "native" where that is available and else "torch". Float64 features are computed by torch.

    Returns:
        float32 scalar (float64 for float64 features); 0, with gradients of 0, if there is nothing to contrast.

    Raises:
        ValueError: an unknown `kind`, `communication` or `kernels`, kernels that are not available, or a number of
            concept ids that differs from the number of views.
    """
    if kind not in FORMULAS:
        raise ValueError(f"kind: {kind!r} is not one of {', '.join(FORMULAS)}")
    if communication not in COMMUNICATIONS:
        raise ValueError(f"communication: {communication!r} is not one of {', '.join(COMMUNICATIONS)}")
    if kernels not in KERNELS:
        raise ValueError(f"kernels: {kernels!r} is not one of {', '.join(KERNELS)}")
    for name, views, ids in (("queries", queries, query_concept_ids), ("keys", keys, key_concept_ids)):
        if len(views) != len(ids):
            raise ValueError(f"{len(views)} {name} have {len(ids)} concept ids; give one for each")
    # A number is written by a kernel, because a copy from the host would wait for the device.
    scale, bias = (
        value.to(queries.device) if isinstance(value, Tensor) else torch.full((), value, device=queries.device)
        for value in (logit_scale, logit_bias)
    )
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

    def uses_triton(self, device: torch.device) -> bool:
        """Return whether Triton kernels compute the loss of float32 and bfloat16 views."""
        return self.kernels == "triton" or (self.kernels == "auto" and device.type == "cuda" and _HAS_TRITON)


class _Contrastive(torch.autograd.Function):
    """Computes loss and gradients in the forward pass; the backward pass multiplies by the upstream scalar."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, scale: Tensor, bias: Tensor, settings: _Settings) -> Tensor:
        dtype = torch.float64 if torch.float64 in (queries.dtype, keys.dtype) else torch.float32
        wide_scale, wide_bias = (each.detach().double().reshape(()) for each in (scale, bias))
        formula = FORMULAS[settings.kind](wide_scale, wide_bias)
        counts = settings.ranks.all_gather_counts(
            len(queries), len(keys), int(settings.with_gradients), device=queries.device
        )
        if dtype == torch.float32 and settings.uses_triton(queries.device):
            steps = _triton_steps(formula, wide_scale, wide_bias, settings, (queries, keys))
        else:
            steps = _tiled_steps(formula, wide_scale, settings, dtype)
        result, gradients, radial = _evaluate(steps, formula.joint, (queries, keys), counts, settings)
        if gradients:
            by_scale, by_bias = ctx.needs_input_grad[2:4]
            # All ranks take part in the sum for the scale, whether or not they need it.
            ctx.save_for_backward(
                *gradients,
                _scale_gradient(result, radial, scale, wide_scale, settings.ranks)
                if by_scale or settings.ranks.world_size > 1
                else None,
                _bias_gradient(result, bias) if by_bias else None,
            )
        return result.loss.to(dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        wanted = [each for each in ctx.saved_tensors if each is not None]
        products = iter(torch._foreach_mul(wanted, upstream))  # one launch for tensors of one dtype
        given = (None if each is None else next(products).to(each.dtype) for each in ctx.saved_tensors)
        return (*given, None)


class _Steps(NamedTuple):
    """What differs between tiles, with everything structural on the host, and kernels with all of it on the device."""

    gather_layout: Callable[[int, Tensor, list[int], Ranks], ViewLayout]
    normalize: Callable[[tuple[Tensor, ...], Tensor, torch.dtype], tuple[Tensor, Tensor]]
    normalize_backward: Callable[..., tuple[tuple[Tensor, ...], Tensor]]
    computation: Callable[[Exchange], LossComputation]
    dtype: torch.dtype  # in which unit features are held
    passes: int  # in which features are read


def _tiled_steps(formula: LossFormula, scale: Tensor, settings: _Settings, dtype: torch.dtype) -> _Steps:
    def computation(exchange: Exchange) -> LossComputation:
        return TiledComputation(formula, scale, exchange, settings.tile_size or _TILE_SIZE, settings.kernels, dtype)

    return _Steps(
        gather_layout, normalize_rows, normalize_rows_backward, computation, settings.communication_dtype or dtype,
        passes=2,
    )  # fmt: skip


def _triton_steps(
    formula: LossFormula, scale: Tensor, bias: Tensor, settings: _Settings, views: tuple[Tensor, Tensor]
) -> _Steps:
    from bali_ds.losses.contrastive.triton_computation import TritonComputation  # Triton is not installed everywhere
    from bali_ds.losses.contrastive.triton_rows import normalize, normalize_backward
    from bali_ds.losses.contrastive.triton_views import sort_views

    both_rounded = all(rows.dtype == torch.bfloat16 for rows in views)
    held = settings.communication_dtype or (torch.bfloat16 if both_rounded else torch.float32)

    def computation(exchange: Exchange) -> LossComputation:
        return TritonComputation(formula, scale, bias, exchange, settings.tile_size)

    return _Steps(sort_views, normalize, normalize_backward, computation, held, passes=3)


def _choose_unit(settings: _Settings, layouts: list[ViewLayout], features: Tensor, passes: int) -> Ranks:
    """Return the ranks that gather blocks together, the same choice on every rank; see `Exchange`."""
    ranks, schedule = settings.ranks, settings.communication
    if ranks.world_size > 1 and schedule == "auto":
        sizes = LossSizes(
            ranks=ranks.world_size,
            ranks_per_node=ranks.node.world_size if ranks.node else 1,
            rows=max(layouts[0].counts),
            columns=max(layouts[-1].counts),
            width=features.shape[1],
            itemsize=features.element_size(),
            joint=len(layouts) == 1,
            passes=passes,
        )
        schedule = choose_schedule(sizes, CPU if features.device.type == "cpu" else H100)
    if ranks.world_size == 1 or schedule == "gather":
        return ranks
    if schedule == "ring":
        return Ranks(0, 1)
    if ranks.node is None:
        raise ValueError("communication: hierarchical needs Ranks with a node, see Ranks.with_node")
    return ranks.node


def _evaluate(
    steps: _Steps, joint: bool, views: tuple[Tensor, Tensor], counts: list[list[int]], settings: _Settings
) -> tuple[LossResult, list[Tensor], list[Tensor]]:
    """Return the loss, the gradients by both views, and for each side <x, dL/dx> of this rank's unit features x."""
    ranks, ids = settings.ranks, settings.concept_ids
    if joint:
        sides: list[tuple[Tensor, ...]] = [views]
        layouts = [steps.gather_layout(0, torch.cat(ids), [q + k for q, k, _ in counts], ranks)]
    else:
        sides = [(rows,) for rows in views]
        layouts = [steps.gather_layout(side, ids[side], [count[side] for count in counts], ranks) for side in (0, 1)]
    orders = [layout.order(ranks.rank) for layout in layouts]
    units = [steps.normalize(tensors, order, steps.dtype) for tensors, order in zip(sides, orders, strict=True)]
    features, inverse = ([each[part] for each in units] for part in (0, 1))
    units.clear()
    exchange = Exchange(ranks, layouts, features, _choose_unit(settings, layouts, features[0], steps.passes))
    result = steps.computation(exchange).run(any(wanted for _, _, wanted in counts))
    factor = result.factor if ranks.world_size == 1 else result.factor * ranks.world_size
    gradients: list[Tensor] = []
    radial: list[Tensor] = []
    for lengths, order, like in zip(inverse, orders, sides, strict=True):
        if result.gradients:  # lists are emptied, so that each tensor is freed once it is used
            by_rows, along = steps.normalize_backward(
                result.gradients.pop(0), exchange.features.pop(0), lengths, order, factor, like
            )
            gradients += by_rows
            radial.append(along)
    return result, gradients, radial


def _bias_gradient(result: LossResult, bias: Tensor) -> Tensor:
    if result.bias_gradient is None:
        return torch.zeros_like(bias)
    return result.bias_gradient.to(bias.dtype).reshape(bias.shape)


def _scale_gradient(
    result: LossResult, radial: list[Tensor], scale: Tensor, wide_scale: Tensor, ranks: Ranks
) -> Tensor:
    by_scale = result.scale_derivative
    if by_scale is None:
        # Similarities are of degree 2 in the unit features, so the sum of s * dL/ds is half that of <x, dL/dx>.
        total = reduce(torch.add, (each.sum() for each in radial))
        by_scale = ranks.all_reduce_sum(total) / (2 * ranks.world_size)
    by_scale = by_scale / wide_scale
    return by_scale.to(scale.dtype).reshape(scale.shape)
