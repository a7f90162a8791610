"""The contrastive losses written down plainly: all similarities at once, in float64, differentiated by autograd."""

import torch
import torch.nn.functional as F


def dense_loss(queries, keys, scale, query_ids, key_ids, kind, *, bias=0.0, normalize=True):
    """Return the loss of all views in one process; without `normalize` features have the length that they came with."""
    queries, keys = queries.double(), keys.double()
    if normalize:
        queries, keys = (F.normalize(rows, dim=1, eps=1e-300) for rows in (queries, keys))
    if kind in ("ntxent", "multi_similarity"):
        views, ids = torch.cat([queries, keys]), torch.cat([query_ids, key_ids])
        same = ids[:, None] == ids
        positive = same & ~torch.eye(len(ids), dtype=torch.bool)
        rule = {"ntxent": ntxent, "multi_similarity": multi_similarity}[kind]
        return rule(views @ views.T, scale, positive, ~same)
    similarities = queries @ keys.T * scale
    same = query_ids[:, None] == key_ids
    partner = None if kind != "clip" else partners(query_ids, key_ids)
    one = one_way(kind, similarities, same, None if partner is None else partner[0], bias)
    other = one_way(kind, similarities.T, same.T, None if partner is None else partner[1], bias)
    return (one + other) / 2


def partners(query_ids, key_ids):
    """Assumes one rank: the view at the same place if its id agrees, else the first of the id, else -1."""

    def choose(ids, others):
        chosen = []
        for place, identity in enumerate(ids.tolist()):
            matching = [other for other, value in enumerate(others.tolist()) if value == identity]
            chosen.append(place if place in matching else (matching or [-1])[0])
        return torch.tensor(chosen, dtype=torch.long)

    return choose(query_ids, key_ids), choose(key_ids, query_ids)


def masked_lse(values, mask):
    """Log of the sum of exponentials over the mask, -inf (without gradient) where it is empty."""
    some = mask.any(1)
    result = values.new_full((len(values),), -torch.inf)
    return result.index_put((some.nonzero()[:, 0],), values[some].masked_fill(~mask[some], -torch.inf).logsumexp(1))


def one_way(kind, s, positive, chosen, bias):
    total = 0.0 * s.sum()
    if kind == "sigmoid":
        signs = positive.double() * 2 - 1
        return F.softplus(-signs * (s + bias)).sum(1).mean() if len(s) else total
    counted = positive.any(1)
    z = masked_lse(s, ~positive)
    for row in (counted & (~positive).any(1)).nonzero()[:, 0].tolist():
        pool = s[row, positive[row]]
        if kind == "clip":
            loss = F.softplus(z[row] - s[row, chosen[row]])
        elif kind == "supcon":
            loss = torch.logaddexp(z[row], pool.logsumexp(0)) - pool.mean()
        else:
            loss = F.softplus(z[row] - pool.logsumexp(0))
        total = total + loss
    return total / counted.sum().clamp(min=1)


def ntxent(cosines, scale, positive, negative):
    s = cosines * scale
    anchors, others = (positive & negative.any(1, keepdim=True)).nonzero(as_tuple=True)
    pairs = F.softplus(masked_lse(s, negative)[anchors] - s[anchors, others])
    return pairs.sum() / positive.sum().clamp(min=1)


def multi_similarity(cosines, scale, positive, negative, alpha=2.0, base=0.5, margin=0.2):
    distances = (2 - 2 * cosines.detach()).clamp(min=0).sqrt()
    farthest = distances.masked_fill(~positive, -torch.inf).amax(1, keepdim=True) if len(cosines) else distances
    nearest = distances.masked_fill(~negative, torch.inf).amin(1, keepdim=True) if len(cosines) else distances
    positive, negative = positive & (distances >= nearest - margin), negative & (distances <= farthest + margin)
    gap = cosines - base
    near = F.softplus(masked_lse(-alpha * gap, positive)) / alpha
    far = F.softplus(masked_lse(scale * gap, negative)) / scale
    return (near + far).sum() / max(len(cosines), 1)


def views(seed, n_queries, n_keys, width, *, concepts, saturated=False, zipf=False):
    """Random views: (queries, keys, query ids, key ids), float32 and int64, duplicates included."""
    generator = torch.Generator().manual_seed(seed)
    if zipf:
        draws = torch.multinomial(1 / torch.arange(1.0, concepts + 1), n_queries + n_keys, True, generator=generator)
    else:
        draws = torch.randint(concepts, (n_queries + n_keys,), generator=generator)
    query_ids, key_ids = draws[:n_queries] * 7 - 3, draws[n_queries:] * 7 - 3
    paired = min(n_queries, n_keys)
    key_ids[:paired] = query_ids[:paired]
    queries = torch.randn(n_queries, width, generator=generator)
    keys = torch.randn(n_keys, width, generator=generator)
    if saturated:
        centers = torch.randn(concepts, width, generator=generator)
        queries = centers[(query_ids + 3) // 7] + 0.3 * queries
        keys = centers[(key_ids + 3) // 7] + 0.3 * keys
    return queries * 2.5, keys * 0.4, query_ids, key_ids
