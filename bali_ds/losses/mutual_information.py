"""Mutual information between text and graph: InfoNCE's lower bound, and the duality gap of the dual objective."""

import torch
from torch import Tensor

from bali_ds.distributed import Ranks


@torch.no_grad()
def info_nce_bound(
    queries: Tensor, keys: Tensor, logit_scale: Tensor, query_concept_ids: Tensor, key_concept_ids: Tensor
) -> Tensor:
    """Return InfoNCE's lower bound on the mutual information of two views, and its maximum; a collective call.

    The bound is the mean over queries of log N - loss, where the loss is the cross-entropy of a query's key among N
    candidates: its nearest key of the same concept, and the keys of other concepts on all ranks (van den Oord, Li and
    Vinyals, 2018, equation 5). It cannot exceed log N; a value near that maximum means that more candidates are needed
    to measure the mutual information.

    Args:
        queries: float [n, d], of this rank.
        keys: float [m, d], of this rank.
        logit_scale: float, one element, the inverse temperature.
        query_concept_ids: int64 [n], each of which is also in `key_concept_ids` on this rank.
        key_concept_ids: int64 [m].

    Returns:
        float32 [3]: of this rank's queries the sum of bounds and the sum of maxima, both in nats, and their number.
    """
    ranks = Ranks.of(None)
    counts = [size for (size,) in ranks.all_gather_counts(len(keys), device=keys.device)]
    unit = torch.nn.functional.normalize(keys.float(), dim=1)
    all_keys, ids = ranks.all_gather_rows(unit, counts), ranks.all_gather_rows(key_concept_ids, counts)
    if not len(queries):
        return queries.new_zeros(3, dtype=torch.float32)
    scale = logit_scale.float().reshape(())
    cosines = torch.nn.functional.normalize(queries.float(), dim=1) @ all_keys.T
    other = query_concept_ids[:, None] != ids[None, :]
    positive = cosines.masked_fill(other, -torch.inf).amax(dim=1)
    negatives = (scale * cosines).masked_fill(~other, -torch.inf)
    loss = torch.cat([scale * positive[:, None], negatives], dim=1).logsumexp(dim=1) - scale * positive
    maxima = (1.0 + other.sum(dim=1)).log()
    return torch.stack([(maxima - loss).sum(), maxima.sum(), loss.new_tensor(float(len(queries)))])


def duality_gap(text: Tensor, graph: Tensor, graph_given_text: Tensor, text_given_graph: Tensor) -> Tensor:
    """Return the squared violation of Bayes' rule by each pair (Xia et al., "Dual Supervised Learning", ICML 2017).

    That is (log p(t) + log p(g | t) - log p(g) - log p(t | g))^2. The marginals get no gradient.

    Args:
        text: float [B], log p(t) in nats.
        graph: float [B], log p(g).
        graph_given_text: float [B], log p(g | t).
        text_given_graph: float [B], log p(t | g).

    Returns:
        float [B].
    """
    return (text.detach() + graph_given_text - graph.detach() - text_given_graph).square()
