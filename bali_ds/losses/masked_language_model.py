"""Masked language modeling over the labeled tokens of all ranks."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from bali_ds.distributed import Ranks


def summed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy summed over tokens: float32 scalar (float64 for float64 logits).

    Args:
        logits: float [K, vocabulary], of the labeled tokens only; K may be 0.
        labels: int64 [K], the original token ids.
    """
    exact = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(exact, labels, reduction="sum")


def mean_over_ranks(total: Tensor, count: int, group: dist.ProcessGroup | None = None) -> Tensor:
    """Return the sum of all ranks' totals divided by the sum of their counts; a collective call.

    The value is the same on every rank. Gradients are scaled so that averaging them over ranks, as data parallelism
    does, gives the gradient of the global mean, whatever the counts of the ranks.

    Args:
        total: float scalar, this rank's sum.
        count: number of terms in this rank's sum; may be 0, even on all ranks.
        group: the ranks that share the loss; None for the default group.

    Returns:
        scalar of the dtype of `total`; 0 if no rank has a term.
    """
    ranks = Ranks.of(group)
    sums = ranks.all_reduce_sum(torch.stack([total.detach().double(), total.new_full((), count, dtype=torch.float64)]))
    terms = sums[1].clamp(min=1)
    mean = (sums[0] / terms).to(total.dtype)
    local = total * (ranks.world_size / terms).to(total.dtype)
    return local + (mean - local).detach()
