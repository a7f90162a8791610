"""What a contrastive loss does to its views, in numbers that can be compared between batches and temperatures."""

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS = 1024


@torch.no_grad()
def alignment(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean squared distance of positive pairs on the unit sphere (Wang and Isola, ICML 2020, alpha = 2).

    Args:
        x: float [n, d], n >= 1, of any length.
        y: float [n, d], the positive of each row.

    Returns:
        float64 scalar between 0 and 4.
    """
    return (F.normalize(x.double(), dim=1) - F.normalize(y.double(), dim=1)).square().sum(dim=1).mean()


@torch.no_grad()
def uniformity(x: Tensor, t: float = 2.0) -> Tensor:
    """Return the log of the mean of exp(-t * squared distance) over pairs of rows (Wang and Isola, ICML 2020).

    Args:
        x: float [n, d], n >= 2, of any length.
        t: width of the kernel.

    Returns:
        float64 scalar; 0 where all rows agree, about -2 t where they spread over the sphere.
    """
    unit = F.normalize(x.float(), dim=1)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for rows in unit.split(_ROWS):
        total += torch.exp(2 * t * (rows @ unit.T - 1)).sum(dtype=torch.float64)
    count = len(unit)
    return ((total - count) / (count * (count - 1))).log()


@torch.no_grad()
def retrieval_at_1(queries: Tensor, keys: Tensor, query_ids: Tensor, key_ids: Tensor) -> Tensor:
    """Return the fraction of queries whose nearest key by cosine has the query's id.

    Args:
        queries: float [n_q, d], n_q >= 1.
        keys: float [n_k, d], n_k >= 1.
        query_ids: int64 [n_q].
        key_ids: int64 [n_k].

    Returns:
        float64 scalar between 0 and 1; of equally near keys the first counts.
    """
    unit = F.normalize(keys.float(), dim=1)
    hits = torch.zeros((), dtype=torch.float64, device=queries.device)
    for rows, ids in zip(queries.float().split(_ROWS), query_ids.split(_ROWS), strict=True):
        hits += (key_ids[(rows @ unit.T).argmax(dim=1)] == ids).sum()
    return hits / len(queries)
