"""Evaluation of a contrastive loss in tiles, by torch or by the C kernels, with everything structural on the host."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bali_ds.losses.contrastive.communication import Exchange
from bali_ds.losses.contrastive.computation import LossComputation
from bali_ds.losses.contrastive.formulas import AnchorStatistics, LossFormula, MultiSimilarity, Sigmoid
from bali_ds.losses.contrastive.native_tiles import NativeNegatives, available
from bali_ds.losses.contrastive.positives import Positives
from bali_ds.losses.contrastive.sorted_views import BlockPair, count_occurrences, find_partners
from bali_ds.losses.contrastive.tiles import (
    FLOOR,
    HEADROOM,
    ExponentialNegatives,
    LogisticNegatives,
    MinedNegatives,
    Tiles,
)

_RANGE = 85.0  # float32 exponentials below exp(-87) underflow


class TiledComputation(LossComputation):
    """Evaluates one formula tile by tile, on any device; it waits for the device in every tile."""

    def __init__(
        self, formula: LossFormula, scale: Tensor, exchange: Exchange, tile_size: int, kernels: str, dtype: torch.dtype
    ) -> None:
        """Count the positives and negatives of every anchor.

        Args:
            formula: the loss.
            scale: the logit scale, float64 scalar.
            exchange: the views.
            tile_size: rows and columns of a tile.
            kernels: see `contrastive_loss`.
            dtype: of matrix products and gradients, float32 or float64.
        """
        super().__init__(formula, scale, exchange)
        self.logit_scale, self.tile_size, self.kernels = float(scale), tile_size, kernels
        self.dtype, self.device = dtype, exchange.features[0].device
        layouts = exchange.layouts
        partners = find_partners(layouts) if formula.partner_only else None
        self.positives = Positives(formula.joint, partners, self.device, resident=exchange.resident)
        self.has_negatives: list[Tensor] = []
        for layout in layouts:
            other = layouts[-1 - layout.side]
            own = layout.block(exchange.ranks.rank, None).concept_ids
            equal = exchange.ranks.all_gather_rows(
                count_occurrences(own, other.concept_ids).to(self.device), layout.counts
            )
            counts = equal - int(formula.joint) if partners is None else torch.from_numpy(partners[layout.side] >= 0)
            num_positives = counts.to(self.device, torch.float64)
            weight = self._anchor_weights(num_positives)
            zero = torch.zeros_like(weight)
            self.anchors.append(AnchorStatistics(weight, num_positives, zero - torch.inf, zero - torch.inf, zero, zero))
            self.has_negatives.append(equal < other.num_views)

    def sum_negatives(self) -> None:
        """Compute `AnchorStatistics.log_negatives`, and `nearest` if negatives are mined."""
        self.negatives = self._logistic_negatives() if self.formula.logistic else self._summed_negatives()

    def _logistic_negatives(self) -> LogisticNegatives:
        assert isinstance(self.formula, Sigmoid)
        return LogisticNegatives(self._tiles(-float(self.formula.bias), self.dtype))

    def _summed_negatives(self) -> ExponentialNegatives:
        """Return the negatives, with `AnchorStatistics.log_negatives` computed.

        In float32, with one shift for all anchors, a sum that comes out too small may have lost terms to underflow.
        All elementwise arithmetic is then repeated in float64, whose range suffices for any logit scale below 600.
        """
        wide_range = self._shift(torch.float32) + self.logit_scale > _RANGE
        precise = self.dtype == torch.float64 or (self.formula.mined and wide_range)
        negatives = self._sum_negatives(torch.float64 if precise else torch.float32)
        if not precise and wide_range:
            least = FLOOR + negatives.tiles.shift
            if any(
                bool((anchors.log_negatives[some] < least).any())
                for anchors, some in zip(self.anchors, self.has_negatives, strict=True)
            ):
                negatives = self._sum_negatives(torch.float64)
        return negatives

    def _shift(self, precision: torch.dtype) -> float:
        return max(0.0, self.logit_scale - (HEADROOM if precision == torch.float32 else 10 * HEADROOM))

    def _sum_negatives(self, precision: torch.dtype) -> ExponentialNegatives:
        shift = self._shift(precision)
        negatives = self._negatives(self._tiles(shift, precision))
        if isinstance(negatives, MinedNegatives):
            self._mine(negatives)

        def sums(pair: BlockPair) -> None:
            if not self.positives.resident:
                self.positives.precompute(pair.rows, pair.columns)
            negatives.sums(pair)

        shape = (2,) if isinstance(negatives, MinedNegatives) else ()
        totals = self._all_gather(self.exchange.accumulate(sums, shape, torch.float64))
        if isinstance(negatives, MinedNegatives):
            self.entropies = [_entropy(*each.unbind(-1)) for each in totals]
            totals = [each[:, 0] for each in totals]
        self.anchors = [
            anchors._replace(log_negatives=each.log() + shift)
            for anchors, each in zip(self.anchors, totals, strict=True)
        ]
        return negatives

    def _mine(self, negatives: MinedNegatives) -> None:
        """Find each anchor's farthest positive, which decides what negatives count, and its nearest negative."""
        assert isinstance(self.formula, MultiSimilarity)
        formula, shift, precision = self.formula, negatives.tiles.shift, negatives.tiles.precision
        farthest = self._all_gather(
            self.exchange.accumulate(self.positives.farthest, (), torch.float64, start=-math.inf, combine=torch.maximum)
        )
        negatives.floors = [
            torch.exp(self.logit_scale * formula.least_negative_cosine(-each) - shift).to(precision)
            for each in farthest
        ]
        nearest = self._all_gather(self.exchange.accumulate(negatives.maxima, (), torch.float64, combine=torch.maximum))
        self.anchors = [
            anchors._replace(nearest=(each.log() + shift) / self.logit_scale)
            for anchors, each in zip(self.anchors, nearest, strict=True)
        ]

    def _tiles(self, shift: float, precision: torch.dtype) -> Tiles:
        return Tiles(self.logit_scale, shift, self.tile_size, self.dtype, precision, self.device)

    def _negatives(self, tiles: Tiles) -> ExponentialNegatives:
        if self.formula.mined:
            return MinedNegatives(tiles)
        if tiles.precision != torch.float32:
            return ExponentialNegatives(tiles)
        if self.kernels == "native" or (self.kernels == "auto" and self.device.type == "cpu" and available()):
            return NativeNegatives(tiles)
        return ExponentialNegatives(tiles)

    def _factors(self, slope: Tensor, anchors: AnchorStatistics) -> Tensor:
        if self.formula.logistic:
            return slope.to(self.dtype)
        factors = slope * torch.exp(self.negatives.tiles.shift - anchors.log_negatives)
        return factors.where(slope > 0, 0.0).to(self.negatives.tiles.precision)

    def sum_positives(self) -> None:
        """Compute `AnchorStatistics.first` and `second`."""

        def terms(cosines: Tensor, side: int, numbers: Tensor) -> tuple[Tensor, ...]:
            return self.formula.positive_terms(cosines * self.logit_scale, self.anchors[side].at(numbers))

        sums = self._all_gather(
            self.exchange.accumulate(
                lambda pair: self.positives.sums(terms, pair),
                (2,),
                torch.float64,
                features=self.positives.resident or self.formula.logistic,  # else the cosines are cached already
            )
        )
        self.anchors = [
            anchors._replace(first=each[:, 0], second=each[:, 1])
            for anchors, each in zip(self.anchors, sums, strict=True)
        ]

    def gradients(self, slopes: Sequence[Tensor], largest: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Compute gradients, divided by the logit scale, and the sums of logistic negatives."""
        negatives = self.negatives
        negatives.factors = [
            self._factors(slope / largest, anchors) for slope, anchors in zip(slopes, self.anchors, strict=True)
        ]

        def pair_slopes(cosines: Tensor, side: int, numbers: Tensor) -> tuple[Tensor, ...]:
            anchors = self.anchors[side].at(numbers)
            return (self.formula.positive_gradients(cosines * self.logit_scale, anchors) / largest,)

        def block_gradients(pair: BlockPair) -> None:
            negatives.gradients(pair)
            self.positives.gradients(pair_slopes, pair)

        by_features = self.exchange.accumulate(block_gradients, (self.exchange.features[0].shape[1],), self.dtype)
        if not isinstance(negatives, LogisticNegatives):
            return by_features, None
        return by_features, torch.stack([negatives.loss, negatives.bias_gradient])


def _entropy(sums: Tensor, logarithms: Tensor) -> Tensor:
    """Return the entropy of the distribution e / sum(e), from the sums of e and of e * log(e); 0 if all e are 0."""
    return (sums.log() - logarithms / sums).where(sums > 0, 0.0)
