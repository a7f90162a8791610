"""Mutual information between text and graph: InfoNCE's lower bound, and the duality gap of the dual objective."""

import math

import torch
from torch import Tensor

from bali_ds.distributed import Ranks


@torch.no_grad()
def info_nce_bound(queries: Tensor, keys: Tensor, own: Tensor, logit_scale: Tensor) -> Tensor:
    """Return InfoNCE's lower bound on the mutual information of two views, and its maximum; a collective call.

    The bound is the mean over queries of log N - loss, where the loss is the cross-entropy of a query's own key among
    the N keys of all ranks (van den Oord, Li and Vinyals, 2018, equation 5). All of them are candidates, also other
    keys of the same concept: without them, or with the nearest of them for the own key, the value could exceed the
    mutual information. The bound cannot exceed log N; a value near that maximum means that more candidates are needed
    to measure the mutual information.

    Args:
        queries: float [n, d], of this rank.
        keys: float [m, d], of this rank.
        own: int64 [n], the row in `keys` of each query's own key.
        logit_scale: float, one element, the inverse temperature.

    Returns:
        float32 [3]: of this rank's queries the sum of bounds and the sum of maxima, both in nats, and their number.
    """
    ranks = Ranks.of(None)
    counts = [size for (size,) in ranks.all_gather_counts(len(keys), device=keys.device)]
    unit = torch.nn.functional.normalize(keys.float(), dim=1)
    candidates = ranks.all_gather_rows(unit, counts)
    if not len(queries):
        return queries.new_zeros(3, dtype=torch.float32)
    scale, asked = logit_scale.float().reshape(()), torch.nn.functional.normalize(queries.float(), dim=1)
    loss = (scale * (asked @ candidates.T)).logsumexp(dim=1) - scale * (asked * unit[own]).sum(dim=1)
    count, maximum = len(queries), math.log(len(candidates))
    return torch.stack([count * maximum - loss.sum(), loss.new_full((), count * maximum), loss.new_full((), count)])


def duality_gap(text: Tensor, graph: Tensor, graph_given_text: Tensor, text_given_graph: Tensor) -> Tensor:
    """Return the squared violation of Bayes' rule by each pair (Xia et al., "Dual Supervised Learning", ICML 2017).

    That is (log p(t) + log p(g | t) - log p(g) - log p(t | g))^2. The marginals get no gradient: the gap trains the
    conditionals alone, as the marginals of Xia et al., which are estimated beforehand.

    Args:
        text: float [B], log p(t) in nats.
        graph: float [B], log p(g).
        graph_given_text: float [B], log p(g | t).
        text_given_graph: float [B], log p(t | g).

    Returns:
        float [B].
    """
    return (text.detach() + graph_given_text - graph.detach() - text_given_graph).square()
