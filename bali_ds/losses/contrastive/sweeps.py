"""One evaluation of the loss, sweep by sweep: what anchors see, the loss, and the gradient of every view."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bali_ds.losses.contrastive.communication import Exchange
from bali_ds.losses.contrastive.kinds import Anchors, Kind, MultiSimilarity, Sigmoid
from bali_ds.losses.contrastive.native_tiles import NativeExponential, available
from bali_ds.losses.contrastive.positives import Positives
from bali_ds.losses.contrastive.sorted_views import Side, ViewBlock
from bali_ds.losses.contrastive.tiles import FLOOR, HEADROOM, Exponential, Logistic, Mined, Tiles

_RANGE = 85.0  # float32 exponentials below exp(-87) are lost


@dataclass
class Result:
    """The loss, the same on every rank, and what this rank's views are owed.

    Attributes:
        loss: float64 scalar.
        gradients: float [n, d], one a side, the derivative by the unit features divided by `factor`.
        factor: what `gradients` are to be multiplied with.
        scale_derivative: scale * dL/dscale, float64 scalar; None where the scale acts through similarities alone.
        bias_gradient: float64 scalar.
    """

    loss: Tensor
    gradients: list[Tensor]
    factor: Tensor
    scale_derivative: Tensor | None
    bias_gradient: Tensor


class Computation:
    """The loss of one kind over the views of an exchange."""

    def __init__(
        self,
        kind: Kind,
        scale: float,
        exchange: Exchange,
        tile: int,
        kernels: str,
        dtype: torch.dtype,
    ) -> None:
        self.kind, self.scale, self.exchange, self.tile, self.kernels = kind, scale, exchange, tile, kernels
        self.dtype, self.device = dtype, exchange.own[0].device
        sides = exchange.sides
        partners = find_partners(sides) if kind.partner_only else None
        self.positives = Positives(kind.joint, partners, self.device, resident=exchange.how != "ring")
        self.contrasted: list[Tensor] = []
        self.anchors: list[Anchors] = []
        self.entropies: list[Tensor] = []
        for side in sides:
            other = sides[-1 - side.number]
            equal = _occurrences(side.ids, other.ids)
            counts = equal - 1 if kind.joint else equal if partners is None else (partners[side.number] >= 0)
            positives = torch.from_numpy(counts.astype(np.float64)).to(self.device)
            share = kind.shares(positives) * (1.0 if kind.joint else 0.5)
            zero = torch.zeros_like(share)
            self.anchors.append(Anchors(share, positives, zero - torch.inf, zero - torch.inf, zero, zero))
            self.contrasted.append(torch.from_numpy(equal < other.total).to(self.device))

    def run(self, with_gradients: bool) -> Result:
        """Return the loss and, unless not wanted, what this rank's views are owed."""
        negatives = self._logistic() if self.kind.logistic else self._exponential()
        self._sum_positives()
        closed = [self.kind.close(anchors) for anchors in self.anchors]
        loss = torch.stack([each.sum() for each, _ in closed]).sum()
        slopes = [slope for _, slope in closed]
        unit = torch.stack([slope.amax() if len(slope) else slope.new_zeros(()) for slope in slopes]).amax()
        unit = torch.where(unit > 0, unit, 1.0)
        gradients: list[Tensor] = []
        if with_gradients or self.kind.logistic:
            negatives.factors = [
                self._factors(slope / unit, anchors, negatives)
                for slope, anchors in zip(slopes, self.anchors, strict=True)
            ]
            gradients = self._gradients(negatives, unit)
        bias_gradient = torch.zeros_like(loss)
        if isinstance(negatives, Logistic):
            totals = self.exchange.ranks.all_reduce_sum(torch.stack([negatives.loss, negatives.bias_gradient])) * unit
            loss = loss + totals[0]
            bias_gradient = totals[1] + sum((each.share * each.second).sum() for each in self.anchors)
        scale_derivative = None
        if isinstance(self.kind, MultiSimilarity):
            scale_derivative = torch.stack(list(map(self.kind.scale_derivative, self.anchors, self.entropies))).sum()
        return Result(loss, gradients, unit * self.scale, scale_derivative, bias_gradient)

    # Negatives

    def _logistic(self) -> Logistic:
        assert isinstance(self.kind, Sigmoid)
        return Logistic(self._tiles(-float(self.kind.bias), self.dtype))

    def _exponential(self) -> Exponential:
        """Return the negatives after `Anchors.negatives` has been summed.

        In float32 with one shift for all, a sum that comes out too small may have lost terms; then everything
        elementwise is done again in float64, which has the range for any logit scale below 600.
        """
        precise = self.dtype == torch.float64 or (self.kind.mined and self._shift(torch.float32) + self.scale > _RANGE)
        negatives = self._summed(torch.float64 if precise else torch.float32)
        if not precise and self._shift(torch.float32) + self.scale > _RANGE:
            least = FLOOR + negatives.tiles.shift
            if any(
                bool((anchors.negatives[contrasted] < least).any())
                for anchors, contrasted in zip(self.anchors, self.contrasted, strict=True)
            ):
                negatives = self._summed(torch.float64)
        return negatives

    def _shift(self, precision: torch.dtype) -> float:
        return max(0.0, self.scale - (HEADROOM if precision == torch.float32 else 10 * HEADROOM))

    def _summed(self, precision: torch.dtype) -> Exponential:
        shift = self._shift(precision)
        negatives = self._tiled(self._tiles(shift, precision))
        if isinstance(negatives, Mined):
            assert isinstance(self.kind, MultiSimilarity)
            farthest = self._everyone(
                self.exchange.sweep(
                    lambda rows, columns, into, across, same: self.positives.farthest(
                        rows, columns, into, None if same else across
                    ),
                    (),
                    torch.float64,
                    start=-math.inf,
                    combine=torch.maximum,
                )
            )
            negatives.floors = [
                torch.exp(self.scale * self.kind.reach(-each) - shift).to(precision) for each in farthest
            ]
            nearest = self._everyone(self.exchange.sweep(negatives.maxima, (), torch.float64, combine=torch.maximum))
            self.anchors = [
                anchors._replace(nearest=(each.log() + shift) / self.scale)
                for anchors, each in zip(self.anchors, nearest, strict=True)
            ]

        def sums(rows: ViewBlock, columns: ViewBlock, into: Tensor, across: Tensor | None, same: bool) -> None:
            if not self.positives.resident:
                self.positives.keep(rows, columns)
            negatives.sums(rows, columns, into, across, same)

        trailing = (2,) if isinstance(negatives, Mined) else ()
        totals = self._everyone(self.exchange.sweep(sums, trailing, torch.float64))
        if isinstance(negatives, Mined):
            self.entropies = [_entropy(*each.unbind(-1)) for each in totals]
            totals = [each[:, 0] for each in totals]
        self.anchors = [
            anchors._replace(negatives=each.log() + shift) for anchors, each in zip(self.anchors, totals, strict=True)
        ]
        return negatives

    def _tiles(self, shift: float, precision: torch.dtype) -> Tiles:
        return Tiles(self.scale, shift, self.tile, self.dtype, precision, self.device)

    def _tiled(self, tiles: Tiles) -> Exponential:
        if self.kind.mined:
            return Mined(tiles)
        if tiles.precision != torch.float32:
            return Exponential(tiles)
        if self.kernels == "triton":
            from bali_ds.losses.contrastive.triton_tiles import TritonExponential  # a GPU library, not everywhere

            return TritonExponential(tiles)
        if self.kernels == "native" or (self.kernels == "auto" and self.device.type == "cpu" and available()):
            return NativeExponential(tiles)
        return Exponential(tiles)

    def _factors(self, slope: Tensor, anchors: Anchors, negatives: Exponential) -> Tensor:
        if self.kind.logistic:
            return slope.to(self.dtype)
        factors = slope * torch.exp(negatives.tiles.shift - anchors.negatives)
        return factors.where(slope > 0, 0.0).to(negatives.tiles.precision)

    # Positives

    def _sum_positives(self) -> None:
        def terms(cosines: Tensor, side: int, numbers: Tensor) -> tuple[Tensor, ...]:
            return self.kind.pair_terms(cosines * self.scale, self.anchors[side].at(numbers))

        sums = self._everyone(
            self.exchange.sweep(
                lambda rows, columns, into, across, same: self.positives.sums(
                    terms, rows, columns, into, None if same else across
                ),
                (2,),
                torch.float64,
                features=self.positives.resident or self.kind.logistic,  # else the cosines are kept already
            )
        )
        self.anchors = [
            anchors._replace(first=each[:, 0], second=each[:, 1])
            for anchors, each in zip(self.anchors, sums, strict=True)
        ]

    # Gradients

    def _gradients(self, negatives: Exponential, unit: Tensor) -> list[Tensor]:
        def slopes(cosines: Tensor, side: int, numbers: Tensor) -> tuple[Tensor, ...]:
            return (self.kind.pair_gradients(cosines * self.scale, self.anchors[side].at(numbers)) / unit,)

        def gradients(rows: ViewBlock, columns: ViewBlock, into: Tensor, across: Tensor | None, same: bool) -> None:
            negatives.gradients(rows, columns, into, across, same)
            self.positives.gradients(slopes, rows, columns, into, None if same else across)

        assert self.exchange.own[0].dim() == 2
        return self.exchange.sweep(gradients, (self.exchange.own[0].shape[1],), self.dtype)

    def _everyone(self, own: list[Tensor]) -> list[Tensor]:
        """Return what all views are owed, from what this rank's are."""
        return [
            self.exchange.ranks.all_gather_rows(each, side.counts)
            for each, side in zip(own, self.exchange.sides, strict=True)
        ]


def _entropy(sums: Tensor, logarithms: Tensor) -> Tensor:
    """Return the entropy of the distribution e / sum(e), from the sums of e and of e * log(e); 0 where all e are 0."""
    return (sums.log() - logarithms / sums).where(sums > 0, 0.0)


def find_partners(sides: list[Side]) -> list[NDArray[np.int64]]:
    """Return for each view the number of its partner on the other side, -1 where no view there has its id.

    The partner is the view at the same place of the whole batch if it has the id, else the first that has.
    """
    partners = []
    for side in sides:
        other = sides[-1 - side.number]
        numbers = np.append(np.argsort(other.given_places()), -1)  # of the other side's views, as given; then none
        ids, firsts = np.unique(other.ids[numbers[:-1]], return_index=True)
        at = np.searchsorted(ids, side.ids)
        known = np.append(ids, 0)[at] == side.ids
        known &= at < len(ids)
        first = np.where(known, numbers[np.append(firsts, -1)[at]], -1)
        same_place = numbers[side.given_places().clip(max=other.total)]
        agrees = (same_place >= 0) & (np.append(other.ids, 0)[same_place] == side.ids)
        partners.append(np.where(agrees, same_place, first))
    return partners


def _occurrences(ids: NDArray[np.int64], among: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how often each id occurs among others."""
    ordered = np.sort(among)
    return np.searchsorted(ordered, ids, side="right") - np.searchsorted(ordered, ids)
