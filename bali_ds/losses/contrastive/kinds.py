"""The losses: what each makes of an anchor's negatives and positives, in closed form."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
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

    def shares(self, positives: Tensor) -> Tensor:
        """Return each anchor's part in the mean, here over anchors that have a positive."""
        return fractions((positives > 0).double())

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


class NTXent(Kind):
    """Mean over pairs (a, p) of softplus(z_a - s_ap): one positive against all negatives at a time.

    Sohn, NIPS 2016; over views of both modalities, labeled, as in Sakhovskiy and Tutubalina, SIGIR 2025.
    """

    joint = True

    def shares(self, positives: Tensor) -> Tensor:
        """Return each anchor's part in the mean over pairs."""
        return fractions(positives) / positives.clamp(min=1)

    def pair_terms(self, similarities: Tensor, anchors: Anchors) -> tuple[Tensor, Tensor]:
        """Return the loss of each pair and its derivative by z."""
        gap = anchors.negatives - similarities
        return F.softplus(gap), gap.sigmoid()

    def close(self, anchors: Anchors) -> tuple[Tensor, Tensor]:
        """Return the loss of each anchor and its derivative by z."""
        return anchors.share * anchors.first, anchors.share * anchors.second

    def pair_gradients(self, similarities: Tensor, anchors: Anchors) -> Tensor:
        """Return the derivative of the loss by each s_ap."""
        return -anchors.share * (anchors.negatives - similarities).sigmoid()


class Clip(NTXent):
    """Two-way cross-entropy between queries and keys (Radford et al., ICML 2021).

    An anchor's one positive is its partner: the view of the other side at its own place in the batch of all ranks if
    that has its id, else the first one that has. Other views of the id are neither positives nor negatives.
    """

    joint = False
    partner_only = True


class SupCon(Kind):
    """Mean over anchors of log(sum over all others of exp(s)) - mean of s_ap (Khosla et al., NeurIPS 2020, L_out)."""

    def pair_terms(self, similarities: Tensor, anchors: Anchors) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return the similarity of each pair and its exponential."""
        return similarities, similarities.exp()

    def close(self, anchors: Anchors) -> tuple[Tensor, Tensor]:
        """Return the loss of each anchor and its derivative by z; 0 for an anchor without negatives."""
        pooled = anchors.second.log()
        loss = F.softplus(anchors.negatives - pooled) + pooled - anchors.first / anchors.positives
        slope = (anchors.negatives - pooled).sigmoid()
        out = (anchors.share == 0) | anchors.negatives.isneginf()
        return (anchors.share * loss).masked_fill(out, 0.0), (anchors.share * slope).masked_fill(out, 0.0)

    def pair_gradients(self, similarities: Tensor, anchors: Anchors) -> Tensor:
        """Return the derivative of the loss by each s_ap."""
        pooled = anchors.second.log()
        part = (similarities - pooled).exp() * (pooled - anchors.negatives).sigmoid()
        return (anchors.share * (part - 1 / anchors.positives)).masked_fill(anchors.negatives.isneginf(), 0.0)


class Marginal(Kind):
    """Mean over anchors of softplus(z_a - log of the sum over p of exp(s_ap)): any positive will do.

    MIL-NCE, Miech et al., CVPR 2020.
    """

    def pair_terms(self, similarities: Tensor, anchors: Anchors) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return the similarity of each pair and its exponential."""
        return similarities, similarities.exp()

    def close(self, anchors: Anchors) -> tuple[Tensor, Tensor]:
        """Return the loss of each anchor and its derivative by z."""
        gap = anchors.negatives - anchors.second.log()
        out = anchors.share == 0
        return (anchors.share * F.softplus(gap)).masked_fill(out, 0.0), (anchors.share * gap.sigmoid()).masked_fill(
            out, 0.0
        )

    def pair_gradients(self, similarities: Tensor, anchors: Anchors) -> Tensor:
        """Return the derivative of the loss by each s_ap."""
        pooled = anchors.second.log()
        return -anchors.share * (anchors.negatives - pooled).sigmoid() * (similarities - pooled).exp()


@dataclass(frozen=True)
class Sigmoid(Kind):
    """Mean over anchors of the sum over all others of softplus(-y * (s + bias)) (Zhai et al., ICCV 2023).

    y is 1 between views of one id and -1 otherwise. An anchor without negatives still has its positives.

    Attributes:
        bias: float64 scalar.
    """

    bias: Tensor
    logistic = True

    def shares(self, positives: Tensor) -> Tensor:
        """Return each anchor's part in the mean over all anchors."""
        return fractions(torch.ones_like(positives))

    def pair_terms(self, similarities: Tensor, anchors: Anchors) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return the loss of each pair and its derivative by the bias."""
        return F.softplus(-similarities - self.bias), -(-similarities - self.bias).sigmoid()

    def close(self, anchors: Anchors) -> tuple[Tensor, Tensor]:
        """Return the loss of each anchor's positives and what one negative of its counts."""
        return anchors.share * anchors.first, anchors.share

    def pair_gradients(self, similarities: Tensor, anchors: Anchors) -> Tensor:
        """Return the derivative of the loss by each s_ap."""
        return -anchors.share * (-similarities - self.bias).sigmoid()


@dataclass(frozen=True)
class MultiSimilarity(Kind):
    """Multi-similarity loss (Wang et al., CVPR 2019) on mined pairs, as SapBERT (Liu et al., NAACL 2021) uses it.

    Mean over anchors of log(1 + sum_p exp(-alpha (c_ap - base))) / alpha, plus the mean of
    log(1 + sum_n exp(scale (c_an - base))) / scale, c the cosine. A pair
    counts if it is in a triplet (a, p, n) with |x_a - x_n| - |x_a - x_p| <= margin.

    Attributes:
        scale: float64 scalar, the logit scale (beta in the paper).
        alpha: weight of positives.
        base: the cosine around which pairs count.
        margin: of the miner; SapBERT and BALI use 0.2.
    """

    scale: Tensor
    alpha: float = 2.0
    base: float = 0.5
    margin: float = 0.2
    joint = True
    mined = True

    def shares(self, positives: Tensor) -> Tensor:
        """Return each anchor's part in the mean over all anchors."""
        return fractions(torch.ones_like(positives))

    def reach(self, farthest: Tensor) -> Tensor:
        """Return the least cosine at which a negative counts, from that of the farthest positive (inf: no positive)."""
        distances = (2 - 2 * farthest).clamp(min=0).sqrt() + self.margin
        return torch.where(farthest.isinf(), torch.inf, 1 - distances**2 / 2)

    def pair_terms(self, similarities: Tensor, anchors: Anchors) -> tuple[Tensor, Tensor]:
        """Return the exponential of each pair that counts, and zeros."""
        weights = self._weights(similarities / self.scale, anchors)
        return weights, torch.zeros_like(weights)

    def _weights(self, cosines: Tensor, anchors: Anchors) -> Tensor:
        distances = (2 - 2 * anchors.nearest).clamp(min=0).sqrt() - self.margin
        counts = (2 - 2 * cosines).clamp(min=0).sqrt() >= distances
        return torch.exp(-self.alpha * (cosines - self.base)) * counts

    def close(self, anchors: Anchors) -> tuple[Tensor, Tensor]:
        """Return the loss of each anchor and its derivative by z."""
        excess = anchors.negatives - self.scale * self.base
        loss = anchors.first.log1p() / self.alpha + F.softplus(excess) / self.scale
        return anchors.share * loss, anchors.share * excess.sigmoid() / self.scale

    def pair_gradients(self, similarities: Tensor, anchors: Anchors) -> Tensor:
        """Return the derivative of the loss by each s_ap."""
        weights = self._weights(similarities / self.scale, anchors)
        return -anchors.share * weights / (1 + anchors.first) / self.scale

    def scale_derivative(self, anchors: Anchors, entropy: Tensor) -> Tensor:
        """Return scale * dL/dscale, from the entropy of the softmax over each anchor's negatives, float64 [total].

        With x = z - scale * base, the part of negatives is softplus(x) / scale, and scale * dx/dscale is x less the
        entropy of the softmax over negatives. What remains of x * sigmoid(x) - softplus(x) is less the entropy of
        one decision with probability sigmoid(x). Only terms of one sign are added: the sum of s * dL/ds, from which
        positives and softplus(x) / scale would be taken off again, agrees with them in all but its last digits.
        """
        excess = anchors.negatives - self.scale * self.base
        size = excess.abs()
        decision = (F.softplus(-size) + size * (-size).sigmoid()).masked_fill(size.isinf(), 0.0)
        return -(anchors.share * (excess.sigmoid() * entropy + decision)).sum() / self.scale


# From the logit scale and the logit bias, float64 scalars, to the kind.
KINDS: dict[str, Callable[[Tensor, Tensor], Kind]] = {
    "ntxent": lambda _scale, _bias: NTXent(),
    "clip": lambda _scale, _bias: Clip(),
    "supcon": lambda _scale, _bias: SupCon(),
    "marginal": lambda _scale, _bias: Marginal(),
    "sigmoid": lambda _scale, bias: Sigmoid(bias),
    "multi_similarity": lambda scale, _bias: MultiSimilarity(scale),
}
