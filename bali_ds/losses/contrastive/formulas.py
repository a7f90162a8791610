"""The contrastive losses in closed form: what each computes from an anchor's negatives and positives.

Notation: s_ap is the scaled similarity of anchor a and positive p (cosine times logit scale), z_a the log of the sum
of exp(s_an) over a's negatives n. Each loss is a sum over anchors, of terms of z_a and of sums over positives.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class AnchorStatistics(NamedTuple):
    """What the loss of each anchor depends on; every field is float64 [views of one side on all ranks].

    Attributes:
        weight: of each anchor in the mean over anchors; 0 excludes it.
        num_positives: how many positives each has.
        nearest: the largest cosine of its negatives.
        log_negatives: z, -inf for an anchor without negatives.
        first: sum over positives of the first of `LossFormula.positive_terms`.
        second: sum over positives of the second.
    """

    weight: Tensor
    num_positives: Tensor
    nearest: Tensor
    log_negatives: Tensor
    first: Tensor
    second: Tensor

    def at(self, indices: Tensor) -> "AnchorStatistics":
        """Return the statistics of some anchors, with a last dimension of 1 that broadcasts over their positives."""
        return AnchorStatistics(*(values[indices][..., None] for values in self))


class PositiveSlopes(NamedTuple):
    """The derivative of the loss by the similarity of anchor a and its positive p: weight_a * f_ap + constant_a.

    f is sigmoid(offset_a - s_ap) if positive terms are logistic, and then there is no constant; else the exponential of
    `LossFormula.exponent`, divided by exp(offset_a). Every field is float64 [anchors].
    """

    weight: Tensor
    offset: Tensor
    constant: Tensor | None


class Exponent(NamedTuple):
    """The exponent of positive terms: by_similarity * s + by_cosine * cosine + constant."""

    by_similarity: float
    by_cosine: float
    constant: float


class LossFormula(ABC):
    """A contrastive loss. Similarities are float64 [..., anchors, positives] and broadcast against anchors.

    Attributes:
        joint: whether queries and keys form one set in which all views are compared; else queries meet keys.
        partner_only: whether an anchor has one positive, its partner on the other side.
        logistic: whether each negative has a term of its own, instead of a sum of exponentials.
        mined: whether only negatives that are near enough count, see `MultiSimilarity`.
        exponent: of the second of `positive_terms`, of which the first is the similarity; None if the terms are
            softplus(b - s) and sigmoid(b - s), with b the `PositiveSlopes.offset`.
    """

    joint = False
    partner_only = False
    logistic = False
    mined = False
    exponent: Exponent | None = Exponent(1.0, 0.0, 0.0)

    def anchor_weights(self, num_positives: Tensor) -> Tensor:
        """Return the weight of each anchor in the mean over one side, here over anchors that have a positive.

        A last dimension is the anchors of one side; the weights of several sides may be asked for at once.
        """
        return normalized((num_positives > 0).double())

    @abstractmethod
    def positive_terms(self, similarities: Tensor, anchors: AnchorStatistics) -> tuple[Tensor, Tensor]:
        """Return two values for each pair; their sums over positives are `anchors.first` and `anchors.second`."""

    @abstractmethod
    def anchor_losses(self, anchors: AnchorStatistics) -> tuple[Tensor, Tensor]:
        """Return the weighted loss of each anchor and its derivative by z."""

    @abstractmethod
    def positive_gradients(self, similarities: Tensor, anchors: AnchorStatistics) -> Tensor:
        """Return the derivative of the loss by each s_ap."""

    @abstractmethod
    def positive_slopes(self, anchors: AnchorStatistics) -> PositiveSlopes:
        """Return the coefficients of `positive_gradients`.

        If positive terms are logistic, `offset` does not depend on sums over positives.
        """

    def largest_positive_cosine(self, anchors: AnchorStatistics) -> Tensor | None:  # noqa: ARG002
        """Return the largest cosine at which a positive of each anchor counts; None if all count."""
        return None


class LogisticPositives(LossFormula):
    """A loss whose positive terms are softplus(b_a - s_ap), with a weight for each anchor."""

    exponent = None

    @abstractmethod
    def offsets(self, anchors: AnchorStatistics) -> Tensor:
        """Return b, float64, broadcast against anchors."""

    def positive_terms(self, similarities: Tensor, anchors: AnchorStatistics) -> tuple[Tensor, Tensor]:
        """Return the loss of each pair and its derivative by b."""
        gap = self.offsets(anchors) - similarities
        return F.softplus(gap), gap.sigmoid()

    def positive_gradients(self, similarities: Tensor, anchors: AnchorStatistics) -> Tensor:
        """Return the derivative of the loss by each s_ap."""
        return -anchors.weight * (self.offsets(anchors) - similarities).sigmoid()

    def positive_slopes(self, anchors: AnchorStatistics) -> PositiveSlopes:
        """Return the coefficients of `positive_gradients`."""
        return PositiveSlopes(-anchors.weight, self.offsets(anchors).expand_as(anchors.weight), None)


def normalized(values: Tensor) -> Tensor:
    """Return values divided by their sum over the last dimension; zeros if that is zero."""
    return values / values.sum(-1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)


class NTXent(LogisticPositives):
    """Mean over pairs (a, p) of -log(exp(s_ap) / (exp(s_ap) + sum_n exp(s_an))) = softplus(z_a - s_ap).

    One positive against all negatives at a time: Sohn, NIPS 2016; with labels and over the views of both modalities
    as in BALI (Sakhovskiy and Tutubalina, SIGIR 2025). The same as pytorch-metric-learning's `NTXentLoss`.
    """

    joint = True

    def anchor_weights(self, num_positives: Tensor) -> Tensor:
        """Return the weight of each anchor in the mean over pairs."""
        return normalized(num_positives) / num_positives.clamp(min=1)

    def offsets(self, anchors: AnchorStatistics) -> Tensor:
        """Return z."""
        return anchors.log_negatives

    def anchor_losses(self, anchors: AnchorStatistics) -> tuple[Tensor, Tensor]:
        """Return the weighted loss of each anchor and its derivative by z."""
        return anchors.weight * anchors.first, anchors.weight * anchors.second


class Clip(NTXent):
    """Symmetric cross-entropy between queries and keys (Radford et al., ICML 2021).

    An anchor's one positive is its partner: the view of the other side at the same position of the global batch if it
    has the same concept, else the first of the concept. Other views of the concept are neither positives nor
    negatives. Without duplicates the same as OpenCLIP's `ClipLoss`.
    """

    joint = False
    partner_only = True

    def anchor_weights(self, num_positives: Tensor) -> Tensor:
        """Return the weight of each anchor in the mean over anchors that have a partner."""
        return normalized(num_positives)


class SupCon(LossFormula):
    """Mean over anchors of log(sum over all others of exp(s)) - mean_p s_ap (Khosla et al., NeurIPS 2020, L_out)."""

    def positive_terms(self, similarities: Tensor, anchors: AnchorStatistics) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return the similarity of each pair and its exponential."""
        return similarities, similarities.exp()

    def anchor_losses(self, anchors: AnchorStatistics) -> tuple[Tensor, Tensor]:
        """Return the weighted loss of each anchor and its derivative by z; 0 for an anchor without negatives."""
        pooled = anchors.second.log()
        loss = F.softplus(anchors.log_negatives - pooled) + pooled - anchors.first / anchors.num_positives
        slope = (anchors.log_negatives - pooled).sigmoid()
        out = (anchors.weight == 0) | anchors.log_negatives.isneginf()
        return (anchors.weight * loss).masked_fill(out, 0.0), (anchors.weight * slope).masked_fill(out, 0.0)

    def positive_gradients(self, similarities: Tensor, anchors: AnchorStatistics) -> Tensor:
        """Return the derivative of the loss by each s_ap."""
        pooled = anchors.second.log()
        part = (similarities - pooled).exp() * (pooled - anchors.log_negatives).sigmoid()
        gradients = anchors.weight * (part - 1 / anchors.num_positives)
        return gradients.masked_fill(anchors.log_negatives.isneginf(), 0.0)

    def positive_slopes(self, anchors: AnchorStatistics) -> PositiveSlopes:
        """Return the coefficients of `positive_gradients`."""
        pooled = anchors.second.log()
        weight = anchors.weight.masked_fill(anchors.log_negatives.isneginf(), 0.0)
        return PositiveSlopes(
            weight * (pooled - anchors.log_negatives).sigmoid(), pooled, -weight / anchors.num_positives.clamp(min=1)
        )


class Marginal(LossFormula):
    """Mean over anchors of softplus(z_a - log sum_p exp(s_ap)): MIL-NCE (Miech et al., CVPR 2020).

    One near positive is enough to make the loss of an anchor small.
    """

    def positive_terms(self, similarities: Tensor, anchors: AnchorStatistics) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return the similarity of each pair and its exponential."""
        return similarities, similarities.exp()

    def anchor_losses(self, anchors: AnchorStatistics) -> tuple[Tensor, Tensor]:
        """Return the weighted loss of each anchor and its derivative by z."""
        gap = anchors.log_negatives - anchors.second.log()
        out = anchors.weight == 0
        loss, slope = anchors.weight * F.softplus(gap), anchors.weight * gap.sigmoid()
        return loss.masked_fill(out, 0.0), slope.masked_fill(out, 0.0)

    def positive_gradients(self, similarities: Tensor, anchors: AnchorStatistics) -> Tensor:
        """Return the derivative of the loss by each s_ap."""
        pooled = anchors.second.log()
        return -anchors.weight * (anchors.log_negatives - pooled).sigmoid() * (similarities - pooled).exp()

    def positive_slopes(self, anchors: AnchorStatistics) -> PositiveSlopes:
        """Return the coefficients of `positive_gradients`."""
        pooled = anchors.second.log()
        weight = -anchors.weight * (anchors.log_negatives - pooled).sigmoid()
        return PositiveSlopes(weight, pooled, torch.zeros_like(weight))


@dataclass(frozen=True)
class Sigmoid(LogisticPositives):
    """Mean over anchors of the sum over all others of softplus(-y (s + bias)): SigLIP (Zhai et al., ICCV 2023).

    y is 1 between views of one concept and -1 otherwise. An anchor without negatives still has its positives.

    Attributes:
        bias: float64 scalar.
    """

    bias: Tensor
    logistic = True

    def anchor_weights(self, num_positives: Tensor) -> Tensor:
        """Return the weight of each anchor in the mean over all anchors."""
        return normalized(torch.ones_like(num_positives))

    def offsets(self, anchors: AnchorStatistics) -> Tensor:  # noqa: ARG002
        """Return minus the bias."""
        return -self.bias

    def anchor_losses(self, anchors: AnchorStatistics) -> tuple[Tensor, Tensor]:
        """Return the weighted loss of each anchor's positives and the weight of each of its negatives."""
        return anchors.weight * anchors.first, anchors.weight


@dataclass(frozen=True)
class MultiSimilarity(LossFormula):
    """Multi-similarity loss (Wang et al., CVPR 2019) on mined pairs, as SapBERT (Liu et al., NAACL 2021) uses it.

    SapBERT's published code has alpha 1 and a scale of 60, BALI's has 2 and 50.

    Mean over anchors of log(1 + sum_p exp(-alpha (c_ap - base))) / alpha + log(1 + sum_n exp(scale (c_an - base))) /
    scale, with c the cosine. A pair counts if it is in a triplet (a, p, n) with |x_a - x_n| - |x_a - x_p| <= margin:
    pytorch-metric-learning's `MultiSimilarityLoss` with `TripletMarginMiner(type_of_triplets="all")`.

    Attributes:
        scale: float64 scalar, the logit scale (beta in the paper).
        alpha: scale of positives.
        base: the cosine from which similarities are measured.
        margin: of the miner; SapBERT and BALI use 0.2.
    """

    scale: Tensor
    alpha: float = 2.0
    base: float = 0.5
    margin: float = 0.2
    joint = True
    mined = True

    @property
    def exponent(self) -> Exponent:  # type: ignore[override]
        """The exponent of the weight of a positive."""
        return Exponent(0.0, -self.alpha, self.alpha * self.base)

    def anchor_weights(self, num_positives: Tensor) -> Tensor:
        """Return the weight of each anchor in the mean over all anchors."""
        return normalized(torch.ones_like(num_positives))

    def least_negative_cosine(self, farthest: Tensor) -> Tensor:
        """Return the smallest cosine at which a negative counts.

        Args:
            farthest: float64, the smallest cosine of an anchor's positives; inf if it has none.

        Returns:
            float64 of the same shape; inf, so that no negative counts, without positives.
        """
        distances = (2 - 2 * farthest).clamp(min=0).sqrt() + self.margin
        return torch.where(farthest.isinf(), torch.inf, 1 - distances**2 / 2)

    def positive_terms(self, similarities: Tensor, anchors: AnchorStatistics) -> tuple[Tensor, Tensor]:
        """Return the similarity of each pair, and the exponential of those that count."""
        return similarities, self._pair_weights(similarities / self.scale, anchors)

    def _pair_weights(self, cosines: Tensor, anchors: AnchorStatistics) -> Tensor:
        distances = (2 - 2 * anchors.nearest).clamp(min=0).sqrt() - self.margin
        counts = (2 - 2 * cosines).clamp(min=0).sqrt() >= distances
        return torch.exp(-self.alpha * (cosines - self.base)) * counts

    def anchor_losses(self, anchors: AnchorStatistics) -> tuple[Tensor, Tensor]:
        """Return the weighted loss of each anchor and its derivative by z."""
        excess = anchors.log_negatives - self.scale * self.base
        loss = anchors.second.log1p() / self.alpha + F.softplus(excess) / self.scale
        return anchors.weight * loss, anchors.weight * excess.sigmoid() / self.scale

    def positive_gradients(self, similarities: Tensor, anchors: AnchorStatistics) -> Tensor:
        """Return the derivative of the loss by each s_ap."""
        weights = self._pair_weights(similarities / self.scale, anchors)
        return -anchors.weight * weights / (1 + anchors.second) / self.scale

    def positive_slopes(self, anchors: AnchorStatistics) -> PositiveSlopes:
        """Return the coefficients of `positive_gradients`."""
        weight = -anchors.weight / (1 + anchors.second) / self.scale
        none = torch.zeros_like(weight)
        return PositiveSlopes(weight, none, none)

    def largest_positive_cosine(self, anchors: AnchorStatistics) -> Tensor:
        """Return the largest cosine at which a positive counts: its distance plus the margin reaches the nearest."""
        distances = (2 - 2 * anchors.nearest).clamp(min=0).sqrt() - self.margin
        return torch.where(distances > 0, 1 - distances**2 / 2, torch.inf)

    def scale_derivative(self, anchors: AnchorStatistics, entropy: Tensor) -> Tensor:
        """Return scale * dL/dscale, float64 scalar.

        With x = z - scale * base, the loss of negatives is softplus(x) / scale, and scale * dx/dscale is x minus the
        entropy of the softmax over negatives. The remainder x * sigmoid(x) - softplus(x) is minus the entropy of a
        Bernoulli variable with probability sigmoid(x). So all terms have one sign, and nothing cancels as it would in
        the sum of s * dL/ds.

        Args:
            anchors: statistics of all anchors.
            entropy: float64 [anchors], of the softmax over each anchor's negatives.
        """
        excess = anchors.log_negatives - self.scale * self.base
        size = excess.abs()
        bernoulli = (F.softplus(-size) + size * (-size).sigmoid()).masked_fill(size.isinf(), 0.0)
        return -(anchors.weight * (excess.sigmoid() * entropy + bernoulli)).sum() / self.scale


# Constructors from the logit scale and the logit bias, both float64 scalars.
FORMULAS: dict[str, Callable[[Tensor, Tensor], LossFormula]] = {
    "ntxent": lambda _scale, _bias: NTXent(),
    "clip": lambda _scale, _bias: Clip(),
    "supcon": lambda _scale, _bias: SupCon(),
    "marginal": lambda _scale, _bias: Marginal(),
    "sigmoid": lambda _scale, bias: Sigmoid(bias),
    "multi_similarity": lambda scale, _bias: MultiSimilarity(scale),
    "sapbert": lambda scale, _bias: MultiSimilarity(scale, alpha=1.0),
}
