"""How far float32 may be from float64, derived from the arithmetic so that it holds on every processor.

Processors and libraries differ in the order in which they add, in whether they fuse multiply and add, and in their
exponentials. A tolerance that was read off one of them fails on the next.
"""

import torch

from tests.losses import dense_contrastive as dense

UNIT = 2.0**-24  # the relative error of one float32 operation
TERMS = 256  # of the longest sums that are not made in float64: products of a tile with features


def rounding(scale: float, condition: float = 1.0) -> float:
    """Return the relative error, in the norm, that float32 leaves in a loss and its gradients.

    A cosine is wrong by 1 unit for each of its two rounded features (Cauchy-Schwarz), 1 for its sum, 1 for its product
    with the scale, and 1 for the shift. Times the scale this is the error of an exponent, and so the relative error of
    an exponential; sums of exponentials are convex and do not enlarge it. Roundings within sums have random signs:
    they grow as the square root of the number of terms.

    Args:
        scale: the logit scale.
        condition: how many times larger the terms of a sum are than the sum, see `scale_condition`.
    """
    return (TERMS**0.5 * condition + 5 * scale) * UNIT


def scale_condition(kind, data, scale, **options) -> float:
    """Return the sum of |s * dL/ds| over |the sum of s * dL/ds|, which is what the scale's gradient is made of."""
    if kind == "multi_similarity":
        return 1.0  # made of terms of one sign
    queries, keys, query_ids, key_ids = data
    sides = [len(queries) + len(keys)] * 2 if kind == "ntxent" else [len(queries), len(keys)]
    scales = torch.full(sides, scale, dtype=torch.float64, requires_grad=True)
    loss = dense.dense_loss(queries.double(), keys.double(), scales, query_ids, key_ids, kind, **options)
    (terms,) = torch.autograd.grad(loss, scales)
    return float(terms.abs().sum() / terms.sum().abs())
