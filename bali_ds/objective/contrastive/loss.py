"""The public loss: views of all ranks in, one global scalar and exact gradients out."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from bali_ds.objective.ranks import Ranks


def contrastive_loss(
    queries: Tensor,
    keys: Tensor,
    logit_scale: Tensor | float,
    *,
    query_ids: Tensor,
    key_ids: Tensor,
    kind: str = "ntxent",
    directions: tuple[float, float] = (0.5, 0.5),  # noqa: ARG001
    weights: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    communication: str = "auto",  # noqa: ARG001
    tile: int | None = None,  # noqa: ARG001
    cache_bytes: int = 0,  # noqa: ARG001
    return_stats: bool = False,
) -> Any:
    """Return the contrastive loss over the views of all ranks, the same scalar on every rank.

    Similarities are cosines times `logit_scale`. Gradients are such that averaging them over ranks, as data
    parallelism does, gives the gradient of the global loss, that of `logit_scale` included.

    `ntxent` (Sakhovskiy and Tutubalina, SIGIR 2025): queries and keys are views together; views of one id are
    positives of each other and never negatives; the mean over ordered positive pairs (a, p) of
    -log(exp(s_ap) / (exp(s_ap) + sum over negatives n of a of exp(s_an))).

    Args:
        queries: float [n_q, d]; any number of rows on each rank, none included.
        keys: float [n_k, d].
        logit_scale: the inverse temperature, one positive number; a tensor of one element gets a gradient.
        query_ids: int64 [n_q], what each query stands for.
        key_ids: int64 [n_k].
        kind: the loss.
        directions: weights of query-to-key and key-to-query terms, for the kinds that have both.
        weights: float [n_q + n_k], how much each view counts as an anchor, queries first; all 1 by default.
        group: the ranks that share the loss; None for the default group.
        communication: how features travel between ranks.
        tile: rows of similarities held at a time.
        cache_bytes: how many bytes of similarities may be kept between the passes.
        return_stats: also return a dictionary of statistics.

    Returns:
        float32 scalar (float64 for float64 features), or (scalar, statistics) with `return_stats`.
        0 with gradients of 0 where there is nothing to contrast.
    """
    if kind != "ntxent":
        raise ValueError(f"kind: {kind!r} is not a contrastive loss; choose ntxent")
    exact = torch.float64 if queries.dtype == torch.float64 else torch.float32
    with torch.autocast(queries.device.type, enabled=False):
        views = F.normalize(torch.cat([queries.to(exact), keys.to(exact)]), dim=1)
        scale = torch.as_tensor(logit_scale, dtype=exact, device=queries.device)
        ones = views.new_ones(len(views))
        counted = ones if weights is None else weights.detach().to(exact)
        loss = _Gathered.apply(views, scale, torch.cat([query_ids, key_ids]), counted, Ranks.of(group))
    return (loss, {}) if return_stats else loss


class _Gathered(torch.autograd.Function):
    """The whole loss on every rank, on gathered views; gradients are made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, views: Tensor, scale: Tensor, ids: Tensor, weights: Tensor, ranks: Ranks) -> Tensor:
        counts = [row[0] for row in ranks.counts(len(ids), device=ids.device)]
        everything = ranks.gather(views, counts).requires_grad_()
        free_scale = scale.clone().requires_grad_()
        with torch.enable_grad():
            loss = _ntxent(everything, free_scale, ranks.gather(ids, counts), ranks.gather(weights, counts))
            gradient, scale_gradient = torch.autograd.grad(loss, [everything, free_scale])
        own = sum(counts[: ranks.rank])
        ctx.save_for_backward(gradient[own : own + len(ids)] * ranks.world_size, scale_gradient)
        return loss.detach()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradient, scale_gradient = ctx.saved_tensors
        return gradient * upstream, scale_gradient * upstream, None, None, None


def _ntxent(views: Tensor, scale: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    similarities = views @ views.T * scale
    same = ids[:, None] == ids
    anchors, positives = (same & ~torch.eye(len(ids), dtype=torch.bool, device=ids.device)).nonzero(as_tuple=True)
    contrasted = (~same).any(dim=1)[anchors]
    counted = weights[anchors]
    total = counted.sum().clamp(min=torch.finfo(views.dtype).tiny)
    anchors, positives, counted = anchors[contrasted], positives[contrasted], counted[contrasted]
    rows, places = anchors.unique(return_inverse=True)
    negatives = similarities[rows].masked_fill(same[rows], -torch.inf).logsumexp(dim=1)
    pairs = F.softplus(negatives[places] - similarities[anchors, positives])
    return (counted * pairs).sum() / total
