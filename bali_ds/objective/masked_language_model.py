"""Masked language modelling over the labelled tokens of all ranks."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from bali_ds.objective.ranks import Ranks


def masked_language_model_loss(logits: Tensor, labels: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Return the mean cross-entropy over the labelled tokens of all ranks.

    The value is the same on every rank. Each rank's gradients are scaled so that averaging over ranks, as data
    parallelism does, gives the gradient of the mean over all tokens, however unevenly they are spread.

    Args:
        logits: float [K, vocabulary], scores of the labelled tokens alone; K may be 0 on a rank, or on all.
        labels: int64 [K], the token ids that stood there.
        group: the ranks that share the loss; None for the default group.

    Returns:
        float32 scalar (float64 for float64 logits); 0 where no rank has a labelled token.
    """
    ranks = Ranks.of(group)
    exact = logits if logits.dtype == torch.float64 else logits.float()
    local = F.cross_entropy(exact, labels, reduction="sum")
    totals = ranks.sum(torch.stack([local.detach().double(), local.new_tensor(len(labels), dtype=torch.float64)]))
    tokens = totals[1].clamp(min=1)
    mean = (totals[0] / tokens).to(local.dtype)
    share = local * (ranks.world_size / tokens).to(local.dtype)
    return share + (mean - share).detach()
