"""What two modalities are known to tell of each other, in nats."""

import torch
from torch import Tensor

from bali_ds.distributed import Ranks


@torch.no_grad()
def info_nce_bound(queries: Tensor, keys: Tensor, logit_scale: Tensor, query_ids: Tensor, key_ids: Tensor) -> Tensor:
    """Return InfoNCE's lower bound on the mutual information of two views, and the most that it can reach.

    The bound is the mean of log N - loss over queries, where the loss is the cross-entropy of a query's key among N
    candidates: that key and all those of other ids, of all ranks (van den Oord, Li and Vinyals, 2018, equation 5). It
    cannot exceed log N: a value near its cap says that there is more to know than so many candidates can show.

    Args:
        queries: float [n, d], of this rank.
        keys: float [m, d], of this rank.
        logit_scale: the inverse temperature.
        query_ids: int64 [n], every one among the key ids of this rank.
        key_ids: int64 [m].

    Returns:
        float32 [3]: this rank's sum of bounds, its sum of caps, both in nats, and its number of queries.
    """
    ranks = Ranks.of(None)
    counts = [size for (size,) in ranks.all_gather_counts(len(keys), device=keys.device)]
    unit = torch.nn.functional.normalize(keys.float(), dim=1)
    everyone, ids = ranks.all_gather_rows(unit, counts), ranks.all_gather_rows(key_ids, counts)
    if not len(queries):
        return queries.new_zeros(3, dtype=torch.float32)
    scale = logit_scale.float().reshape(())
    cosines = torch.nn.functional.normalize(queries.float(), dim=1) @ everyone.T
    other = query_ids[:, None] != ids[None, :]
    positive = cosines.masked_fill(other, -torch.inf).amax(dim=1)
    wrong = (scale * cosines).masked_fill(~other, -torch.inf)
    loss = torch.cat([scale * positive[:, None], wrong], dim=1).logsumexp(dim=1) - scale * positive
    caps = (1.0 + other.sum(dim=1)).log()
    return torch.stack([(caps - loss).sum(), caps.sum(), loss.new_tensor(float(len(queries)))])


def duality_gap(text: Tensor, graph: Tensor, graph_given_text: Tensor, text_given_graph: Tensor) -> Tensor:
    """Return the squared gap of Bayes' rule of each pair (Xia et al., "Dual Supervised Learning", ICML 2017).

    (log p(t) + log p(g | t) - log p(g) - log p(t | g))^2, all arguments log-likelihoods in nats, float [B]; the
    marginals are taken as given.
    """
    return (text.detach() + graph_given_text - graph.detach() - text_given_graph).square()
