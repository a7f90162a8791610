"""Evaluation of a contrastive loss by Triton kernels: everything stays on the device, and nothing waits for it."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from bali_ds.losses.contrastive import triton_negatives, triton_positives
from bali_ds.losses.contrastive.communication import BlockFunction, Exchange
from bali_ds.losses.contrastive.computation import LossComputation
from bali_ds.losses.contrastive.formulas import AnchorStatistics, LogisticPositives, LossFormula, MultiSimilarity
from bali_ds.losses.contrastive.sorted_views import BlockPair, ViewBlock
from bali_ds.losses.contrastive.triton_views import IndexedLayout, Runs, find_occurrences, find_runs
from bali_ds.losses.contrastive.workspace import DERIVATIVE_BYTES, Workspace

_ROW_MULTIPLE = triton_negatives.SYMMETRIC_ROWS  # rows of a stripe, unless it is the last


class TritonComputation(LossComputation):
    """Evaluates one formula on the device, in stripes of rows.

    The anchors of both sides are in one tensor, one side after the other, so that a formula is evaluated once.
    """

    layouts: list[IndexedLayout]

    def __init__(
        self, formula: LossFormula, scale: Tensor, bias: Tensor, exchange: Exchange, stripe: int | None
    ) -> None:
        """Count the positives of every anchor.

        Args:
            formula: the loss.
            scale: the logit scale, float64 scalar.
            bias: the logit bias, float64 scalar.
            exchange: the views; its layouts are `IndexedLayout`s.
            stripe: rows processed at a time, rounded to a multiple of `SYMMETRIC_ROWS`; None: as many as
                `DERIVATIVE_BYTES` hold.
        """
        super().__init__(formula, scale, exchange)
        self.bias, self.stripe = bias, stripe
        self.layouts = [layout for layout in exchange.layouts if isinstance(layout, IndexedLayout)]
        self.workspace = Workspace(scale.device)
        counts = [layout.num_views for layout in self.layouts]
        num_positives = torch.empty(sum(counts), dtype=torch.float64, device=scale.device)
        self.occurrences = [
            find_occurrences(layout, self.layouts[-1 - layout.side], lengths, partners=formula.partner_only)
            for layout, lengths in zip(self.layouts, num_positives.split(counts), strict=True)
        ]
        self._runs: dict[tuple[int, ...], Runs] = {}
        if formula.joint:
            num_positives -= 1  # a view is not its own positive
        # Sides of one length are evaluated at once.
        sides = [num_positives.view(len(counts), -1)] if len(set(counts)) == 1 else num_positives.split(counts)
        weight = _joined([self._anchor_weights(each).flatten() for each in sides])
        unknown = weight.new_empty(0)
        self.anchors = [AnchorStatistics(weight, num_positives, unknown, unknown, unknown, unknown)]
        self.floors: Tensor | None = None

    def sum_negatives(self) -> None:
        """Compute `AnchorStatistics.log_negatives`, and `nearest` if negatives are mined."""
        if self.formula.logistic:
            return
        anchors = self.anchors[0]
        if not isinstance(self.formula, MultiSimilarity):
            log_negatives = self._accumulate(self._add_negatives, (), -math.inf, torch.logaddexp)
            self.anchors = [anchors._replace(log_negatives=log_negatives)]
            return
        add_farthest = self._add_positives(triton_positives.FARTHEST)
        least = self.formula.least_negative_cosine(-self._accumulate(add_farthest, (), -math.inf, torch.maximum))
        self.floors = (least * self.scale / math.log(2)).float()
        sums = self._accumulate(self._add_negatives, (3,), -math.inf, triton_negatives.merge_mined_sums)
        largest, total, spread = sums.unbind(-1)
        log_total = total.log()  # minus infinity where no negative counts
        self.entropies = [(log_total + spread / total).where(total > 0, 0.0)]
        log_negatives = (largest + log_total).where(total > 0, -math.inf)
        self.anchors = [anchors._replace(nearest=largest / self.scale, log_negatives=log_negatives)]

    def sum_positives(self) -> None:
        """Compute `AnchorStatistics.first` and `second`."""
        terms = triton_positives.LOGISTIC if self.formula.exponent is None else triton_positives.EXPONENTIAL
        sums = self._accumulate(self._add_positives(terms), (2,), 0.0, torch.add)
        self.anchors = [self.anchors[0]._replace(first=sums[:, 0], second=sums[:, 1])]

    def gradients(self, slopes: Sequence[Tensor], largest: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Compute gradients, divided by the logit scale, and the sums of logistic negatives."""
        formula, anchors = self.formula, self.anchors[0]
        negatives = triton_negatives.EXPONENTIAL
        if formula.logistic:
            negatives = triton_negatives.LOGISTIC
        elif formula.mined:
            negatives = triton_negatives.MINED
        factors = torch.empty_like(slopes[0], dtype=torch.float32)
        torch.div(slopes[0], largest, out=factors)
        if not formula.logistic:
            # The derivative c exp(s - z) is the exponential of s + log(c) - z; an anchor without negatives has no z.
            torch.sub(factors.log2(), anchors.log_negatives, alpha=1 / math.log(2), out=factors)
            factors.nan_to_num_(nan=-math.inf, neginf=-math.inf)
        limit = formula.largest_positive_cosine(anchors)
        slopes_of_positives = [*formula.positive_slopes(anchors), *(() if limit is None else (limit,))]
        positives = torch.stack([each for each in slopes_of_positives if each is not None])
        totals = torch.zeros(2, dtype=torch.float64, device=self.scale.device) if formula.logistic else None

        def add_gradients(pair: BlockPair) -> None:
            rows, columns, row_accumulator, column_accumulator, symmetric = pair
            itemsize = self.exchange.features[0].element_size()
            for upper, left in self._stripes(rows, columns, symmetric, itemsize):
                assert upper.features is not None
                assert left.features is not None
                runs = self._runs_of(upper, rows, columns)
                derivatives, sums = triton_negatives.negative_derivatives(
                    upper.features, left.features, runs.begins, runs.ends,
                    (self._at(factors, upper), self._at(factors, left)), self.scale, self.bias, left.start, negatives,
                    self.workspace, self._floors_of(upper, left), both=column_accumulator is not None,
                    symmetric=symmetric,
                )  # fmt: skip
                triton_positives.write_positive_derivatives(
                    upper.features, left.features, runs, self._partners(left),
                    (self._at(positives, upper), self._at(positives, left)), largest, self.scale,
                    (upper.start, left.start), derivatives, formula.exponent, joint=formula.joint,
                )  # fmt: skip
                if totals is not None and sums is not None:
                    totals.add_(sums.sum(1, dtype=torch.float64))
                triton_negatives.add_product(row_accumulator[upper.within(rows)], derivatives, left.features)
                same = len(upper) if symmetric else 0
                if column_accumulator is not None and same < len(left):
                    triton_negatives.add_product(
                        column_accumulator[left.within(columns)][same:], derivatives[:, same:].T, upper.features
                    )

        shape = (self.exchange.features[0].shape[1],)
        into = self._accumulators(shape, torch.float32, 0.0)[1]
        return self.exchange.accumulate(add_gradients, shape, torch.float32, into=into), totals

    def _add_negatives(self, pair: BlockPair) -> None:
        rows, columns, row_accumulator, column_accumulator, symmetric = pair
        for upper, left in self._stripes(rows, columns, symmetric, 0.25):
            assert upper.features is not None
            assert left.features is not None
            runs = self._runs_of(upper, rows, columns)
            triton_negatives.add_negative_sums(
                upper.features, left.features, runs.begins, runs.ends, self.scale, left.start,
                row_accumulator[upper.within(rows)],
                None if column_accumulator is None else column_accumulator[left.within(columns)],
                self.workspace, self._floors_of(upper, left), symmetric=symmetric,
            )  # fmt: skip

    def _add_positives(self, terms: int) -> BlockFunction:
        """Return the function that adds sums over positives of anchors to accumulators, see `triton_positives`."""
        anchors = self.anchors[0]
        offsets = None
        if terms == triton_positives.LOGISTIC:
            assert isinstance(self.formula, LogisticPositives)
            offsets = self.formula.offsets(anchors).expand_as(anchors.weight).contiguous()
        limits = self.formula.largest_positive_cosine(anchors) if terms == triton_positives.EXPONENTIAL else None

        def add(anchors: ViewBlock, others: ViewBlock, accumulator: Tensor) -> None:
            assert anchors.features is not None
            assert others.features is not None
            triton_positives.add_positive_sums(
                anchors.features, others.features, self._runs_of(anchors, anchors, others),
                None if offsets is None else self._at(offsets, anchors),
                None if limits is None else self._at(limits, anchors),
                self.scale, (anchors.start, others.start), accumulator, terms, self.formula.exponent,
                joint=self.formula.joint,
            )  # fmt: skip

        def add_both(pair: BlockPair) -> None:
            add(pair.rows, pair.columns, pair.row_accumulator)
            if pair.other_accumulator is not None:
                add(pair.columns, pair.rows, pair.other_accumulator)

        return add_both

    def _stripes(
        self, rows: ViewBlock, columns: ViewBlock, symmetric: bool, bytes_per_pair: float
    ) -> Iterator[tuple[ViewBlock, ViewBlock]]:
        """Yield (rows, columns) of each stripe.

        If rows and columns are the same views, columns left of a stripe's rows are skipped: its first columns are its
        rows.
        """
        first = 0
        while first < len(rows) and len(columns):
            left = columns.part(first, len(columns)) if symmetric else columns
            wanted = self.stripe or int(DERIVATIVE_BYTES / (len(left) * bytes_per_pair))
            height = max(wanted // _ROW_MULTIPLE, 1) * _ROW_MULTIPLE
            yield rows.part(first, first + height), left
            first += height

    def _runs_of(self, part: ViewBlock, rows: ViewBlock, columns: ViewBlock) -> Runs:
        """Return where the concepts of a part of `rows` occur among `columns`, by the numbers of columns."""
        key = (rows.side, rows.start, len(rows), columns.start, len(columns))
        if key not in self._runs:
            runs = self.occurrences[rows.side].of(rows.span)
            if len(columns) != self.layouts[columns.side].num_views:
                within = find_runs(rows.concept_ids, columns.concept_ids, columns.start)
                runs = within._replace(partners=runs.partners)
            self._runs[key] = runs
        return self._runs[key].of(part.within(rows))

    def _partners(self, block: ViewBlock) -> Tensor | None:
        partners = self.occurrences[block.side].partners
        return None if partners is None else partners[block.span]

    def _floors_of(self, rows: ViewBlock, columns: ViewBlock) -> tuple[Tensor, Tensor] | None:
        return None if self.floors is None else (self._at(self.floors, rows), self._at(self.floors, columns))

    def _at(self, values: Tensor, block: ViewBlock) -> Tensor:
        """Return the values of the views of a block, from those of both sides."""
        first = block.start + (self.layouts[0].num_views if block.side else 0)
        return values[..., first : first + len(block)]

    def _accumulators(
        self, shape: tuple[int, ...], dtype: torch.dtype, start: float
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return initial values of this rank's views of both sides, and the parts of it that belong to each."""
        counts = [len(features) for features in self.exchange.features]
        whole = torch.full((sum(counts), *shape), start, dtype=dtype, device=self.scale.device)
        return whole, whole.split(counts)

    def _accumulate(
        self, function: BlockFunction, shape: tuple[int, ...], start: float, combine: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Return float64 [all views of both sides, *shape], accumulated over all pairs; a collective call."""
        whole, sides = self._accumulators(shape, torch.float64, start)
        sums = self.exchange.accumulate(function, shape, torch.float64, start=start, combine=combine, into=sides)
        return whole if self.exchange.ranks.world_size == 1 else _joined(self._all_gather(sums))


def _joined(sides: list[Tensor]) -> Tensor:
    return sides[0] if len(sides) == 1 else torch.cat(sides)
