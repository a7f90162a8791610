"""What a loss sees: anchors, their negatives through one number each, their positives one by one.

Every kind sees an anchor a through two things: z, the log of the sum of exp(s_an) over its negatives n, and the
similarities s_ap of its positives p (s is cosine times logit scale). All sums over negatives are the tiles'
business, all sums over positives are made here, in float64, so that a loss is a few lines and saturates gracefully:
terms are softplus(z - s), never log-sum-exp minus the positive.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor


class Anchors(NamedTuple):
    """The anchors of one side. Each is float64 [total], over all ranks.

    Attributes:
        share: each anchor's part in the mean; 0 takes it out.
        positives: how many each has.
        nearest: the largest cosine of its negatives.
        negatives: z, -inf where there is none.
        first: sum over positives of the kind's first pair term.
        second: of its second.
    """

    share: Tensor
    positives: Tensor
    nearest: Tensor
    negatives: Tensor
    first: Tensor
    second: Tensor

    def at(self, places: Tensor) -> "Anchors":
        """Return the anchors at some places, as columns that broadcast against their positives."""
        return Anchors(*(values[places][..., None] for values in self))


class Kind(ABC):
    """What makes a loss: how anchors and pairs count. Similarities are float64 and broadcast against anchors.

    Attributes:
        joint: whether queries and keys are views of one side that all meet each other, or two sides that meet.
        partner_only: whether an anchor has one positive, its partner on the other side.
        logistic: whether negatives count one by one instead of through z.
        mined: whether an anchor's negatives count only if near enough, see `MultiSimilarity`.
    """

    joint = False
    partner_only = False
    logistic = False
    mined = False

    def shares(self, weights: Tensor, positives: Tensor) -> Tensor:
        """Return each anchor's part in the mean, here over anchors that have a positive."""
        return fractions(weights * (positives > 0))

    @abstractmethod
    def pair_terms(self, similarities: Tensor, anchors: Anchors) -> tuple[Tensor, Tensor]:
        """Return two values for each pair, whose sums over an anchor's positives reach `close`."""

    @abstractmethod
    def close(self, anchors: Anchors) -> tuple[Tensor, Tensor]:
        """Return the loss of each anchor and its derivative by z."""

    @abstractmethod
    def pair_gradients(self, similarities: Tensor, anchors: Anchors) -> Tensor:
        """Return the derivative of the loss by each s_ap."""


def fractions(values: Tensor) -> Tensor:
    """Return each value's share of their sum; zeros where that is zero."""
    return values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
