"""One evaluation of a contrastive loss, pass by pass: statistics of anchors, the loss, the gradient of every view."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from bali_ds.losses.contrastive.communication import Exchange
from bali_ds.losses.contrastive.formulas import AnchorStatistics, LossFormula, MultiSimilarity


@dataclass
class LossResult:
    """The loss, the same on every rank, and the gradients of this rank's views.

    Attributes:
        loss: float64 scalar.
        gradients: for each side float [n, d], the gradient by the unit features divided by `factor`.
        factor: float64 scalar.
        scale_derivative: scale * dL/dscale, float64 scalar; None if the scale acts through similarities alone.
        bias_gradient: float64 scalar; None if the loss has no bias.
    """

    loss: Tensor
    gradients: list[Tensor]
    factor: Tensor
    scale_derivative: Tensor | None
    bias_gradient: Tensor | None


class LossComputation(ABC):
    """Evaluates one formula over the views of an exchange; `run` makes collective calls.

    Attributes:
        formula: the loss.
        scale: the logit scale, float64 scalar.
        exchange: the views.
        anchors: statistics of the anchors of each side, or of both sides one after the other.
        entropies: if negatives are mined, of the softmax over each anchor's negatives, float64 like `anchors`.
    """

    def __init__(self, formula: LossFormula, scale: Tensor, exchange: Exchange) -> None:
        self.formula, self.scale, self.exchange = formula, scale, exchange
        self.anchors: list[AnchorStatistics] = []
        self.entropies: list[Tensor] = []

    @abstractmethod
    def sum_negatives(self) -> None:
        """Compute the statistics of negatives that the formula needs; a collective call."""

    @abstractmethod
    def sum_positives(self) -> None:
        """Compute the statistics of positives, from those of negatives; a collective call."""

    @abstractmethod
    def gradients(self, slopes: Sequence[Tensor], largest: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Compute gradients and the sums of logistic negatives; a collective call.

        Args:
            slopes: float64 like `anchors`, the second of `LossFormula.anchor_losses`.
            largest: float64 scalar, the largest slope, which everything is divided by.

        Returns:
            For each side float [n, d], the gradient by this rank's unit features divided by the logit scale; and
            for logistic negatives float64 [2], this rank's sums of softplus(s_ij + bias) * (c_i + c_j) and of their
            derivatives by the bias.
        """

    def run(self, with_gradients: bool) -> LossResult:
        """Return the loss and, if asked for, the gradients."""
        self.sum_negatives()
        self.sum_positives()
        per_anchor = [self.formula.anchor_losses(anchors) for anchors in self.anchors]
        loss = reduce(torch.add, (losses.sum() for losses, _ in per_anchor))
        slopes = [slope for _, slope in per_anchor]
        # Gradients are computed relative to the largest slope, so that those of a saturated loss do not underflow.
        largest = reduce(torch.maximum, (slope.amax() if len(slope) else slope.new_zeros(()) for slope in slopes))
        largest = largest + (largest == 0)
        gradients: list[Tensor] = []
        bias_gradient = None
        if with_gradients or self.formula.logistic:
            gradients, totals = self.gradients(slopes, largest)
            if totals is not None:
                totals = self.exchange.ranks.all_reduce_sum(totals) * largest
                loss = loss + totals[0]
                bias_gradient = totals[1] - sum((each.weight * each.second).sum() for each in self.anchors)
        scale_derivative = None
        if isinstance(self.formula, MultiSimilarity):
            scale_derivative = reduce(
                torch.add, map(self.formula.scale_derivative, self.anchors, self.entropies)
            )  # fmt: skip
        return LossResult(loss, gradients, largest * self.scale, scale_derivative, bias_gradient)

    def _all_gather(self, own: list[Tensor]) -> list[Tensor]:
        """Return the values of all views of each side, from those of this rank's views."""
        return [
            self.exchange.ranks.all_gather_rows(each, layout.counts)
            for each, layout in zip(own, self.exchange.layouts, strict=True)
        ]

    def _anchor_weights(self, num_positives: Tensor) -> Tensor:
        """Return the weights of the anchors of one side; the loss between queries and keys is the mean of both ways."""
        return self.formula.anchor_weights(num_positives) * (1.0 if self.formula.joint else 0.5)
