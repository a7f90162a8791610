"""The public loss: views of all ranks in, one global scalar and exact gradients out."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bali_ds.distributed import Ranks
from bali_ds.losses.contrastive.communication import Exchange, choose
from bali_ds.losses.contrastive.kinds import KINDS
from bali_ds.losses.contrastive.sorted_views import gather_side, through_unit_length, unit_length
from bali_ds.losses.contrastive.sweeps import Computation, Result

KERNELS = ("auto", "torch", "native", "triton")
TILE = {"cpu": 512, "cuda": 4096}  # rows and columns of a tile: a CPU's second-level cache; few launches on a GPU


def contrastive_loss(
    queries: Tensor,
    keys: Tensor,
    logit_scale: Tensor | float,
    *,
    query_ids: Tensor,
    key_ids: Tensor,
    kind: str = "ntxent",
    logit_bias: Tensor | float = 0.0,
    group: dist.ProcessGroup | Ranks | None = None,
    communication: str = "auto",
    wire: torch.dtype | None = None,
    tile: int | None = None,
    kernels: str = "auto",
) -> Tensor:
    """Return the contrastive loss over the views of all ranks, the same scalar on every rank.

    Similarities are cosines times `logit_scale`; views of one id are never negatives of each other. Gradients are
    such that averaging them over ranks, as data parallelism does, gives the gradient of the global loss, that of
    `logit_scale` included. They are made in the forward pass, tile by tile: beside the views and their gradients
    nothing is held but tiles. All ranks must call with equal settings; what they hold may differ.

    Args:
        queries: float [n_q, d]; any number of rows on each rank, none included.
        keys: float [n_k, d].
        logit_scale: the inverse temperature, one positive number; a tensor of one element gets a gradient.
        query_ids: int64 [n_q], what each query stands for.
        key_ids: int64 [n_k].
        kind: "ntxent" and "multi_similarity" over all views together, "clip", "supcon", "marginal" and "sigmoid"
            between queries and keys, see `bali_ds.losses.contrastive.kinds`.
        logit_bias: added to similarities, for "sigmoid" alone; a tensor of one element gets a gradient.
        group: the ranks that share the loss; None for the default group. A `Ranks` counts the bytes that are sent.
        communication: "gather", "ring" or "column", see `bali_ds.losses.contrastive.communication`; "auto"
            gathers while that takes at most 1 GiB and else takes the ring.
        wire: dtype to which unit features are rounded before anything else, in which they are held and travel; for
            instance torch.bfloat16. None: float32, or float64 for float64 features.
        tile: rows and columns of similarities held at a time.
        kernels: what makes float32 tiles: "torch", "native" on a CPU with AVX-512, "triton" on a GPU; "auto" is
            "native" where it can be and else "torch".

    Returns:
        float32 scalar (float64 for float64 features); 0 with gradients of 0 where there is nothing to contrast.

    Raises:
        ValueError: a kind, a way of communication or kernels that there are not, or not here; ids that are not one a
            view.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: {kind!r} is none of {', '.join(KINDS)}")
    if kernels not in KERNELS:
        raise ValueError(f"kernels: {kernels!r} is none of {', '.join(KERNELS)}")
    if (len(query_ids), len(key_ids)) != (len(queries), len(keys)):
        raise ValueError(f"{len(queries)} queries and {len(keys)} keys have {len(query_ids)} and {len(key_ids)} ids")
    scale, bias = (torch.as_tensor(value, device=queries.device) for value in (logit_scale, logit_bias))
    given = (queries, keys, scale, bias)
    plan = _Plan(
        kind, (query_ids, key_ids), group if isinstance(group, Ranks) else Ranks.of(group), communication, wire, tile,
        kernels, with_gradients=torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given),
    )  # fmt: skip
    with torch.autocast(queries.device.type, enabled=False):
        loss: Tensor = _Contrastive.apply(*given, plan)
    return loss


@dataclass
class _Plan:
    kind: str
    ids: tuple[Tensor, Tensor]
    ranks: Ranks
    communication: str
    wire: torch.dtype | None
    tile: int | None
    kernels: str
    with_gradients: bool


class _Contrastive(torch.autograd.Function):
    """Loss and gradients in the forward pass; the backward pass multiplies by the upstream scalar."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, scale: Tensor, bias: Tensor, plan: _Plan) -> Tensor:
        ranks, given = plan.ranks, (queries, keys)
        dtype = torch.float64 if torch.float64 in (queries.dtype, keys.dtype) else torch.float32
        kind = KINDS[plan.kind](scale.double().reshape(()), bias.double().reshape(()))
        sizes = ranks.all_gather_counts(len(queries), len(keys), int(plan.with_gradients), device=queries.device)
        if kind.joint:
            parts: list[tuple[Tensor, ...]] = [given]
            sides = [gather_side(0, torch.cat(plan.ids), [q + k for q, k, _ in sizes], ranks)]
        else:
            parts = [(queries,), (keys,)]
            sides = [
                gather_side(number, plan.ids[number], [size[number] for size in sizes], ranks) for number in (0, 1)
            ]
        own, inverse = [], []
        for rows, side in zip(parts, sides, strict=True):
            unit, lengths = unit_length(rows, side.orders[ranks.rank], plan.wire or dtype)
            own.append(unit)
            inverse.append(lengths)
        del unit
        how = choose(plan.communication, ranks, sides, queries.shape[1])
        exchange = Exchange(ranks, sides, own, how)
        tile = plan.tile or TILE.get(queries.device.type, 1024)
        with_gradients = any(wanted for _, _, wanted in sizes)
        computation = Computation(kind, float(scale), exchange, tile, plan.kernels, dtype)
        result = computation.run(with_gradients)
        if with_gradients:
            ctx.save_for_backward(*_returned(result, exchange, inverse, given, scale, bias))
        return result.loss.to(dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return (*((gradient * upstream).to(gradient.dtype) for gradient in ctx.saved_tensors), None)


def _returned(
    result: Result,
    exchange: Exchange,
    inverse: list[Tensor],
    given: tuple[Tensor, Tensor],
    scale: Tensor,
    bias: Tensor,
) -> tuple[Tensor, ...]:
    """Return the gradients by queries, keys, scale and bias, as data parallelism averages them."""
    ranks = exchange.ranks
    factor = result.factor * ranks.world_size
    radial = result.loss.new_zeros(())
    gradients: list[Tensor] = []
    while result.gradients:
        gradient, features = result.gradients.pop(0), exchange.own.pop(0)
        radial += through_unit_length(gradient, features, inverse[len(gradients)], factor)
        del features
        order = torch.from_numpy(exchange.sides[len(gradients)].orders[ranks.rank]).to(gradient.device)
        gradients.append(torch.empty_like(gradient).index_copy_(0, order, gradient))
    both = gradients if len(gradients) == 2 else gradients[0].split([len(rows) for rows in given])
    by_features = (gradient.to(rows.dtype) for gradient, rows in zip(both, given, strict=True))
    by_scale = result.scale_derivative
    if by_scale is None:
        # Similarities are of degree 2 in the unit features, so the sum of s * dL/ds is half that of <x, dL/dx>.
        by_scale = ranks.all_reduce_sum(radial) / (2 * ranks.world_size)
    by_scale = by_scale / scale.double().reshape(())
    return (
        *by_features,
        by_scale.to(scale.dtype).reshape(scale.shape),
        result.bias_gradient.to(bias.dtype).reshape(bias.shape),
    )
