"""Normalized views sorted by concept id, the order in which the loss processes them.

Sorting brings equal concept ids together, so that positives are found without comparing all pairs.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bali_ds.distributed import Ranks

_ROWS = 256  # rows normalized at a time, few enough to stay in a CPU's cache


@dataclass(frozen=True)
class ViewLayout:
    """Concept ids of one side of the similarity matrix, and where its views are on all ranks.

    A side is the queries, the keys, or both together where all views are compared with each other. Its views are
    numbered rank by rank, and by concept id within a rank.

    Attributes:
        side: 0 for queries or for both together, 1 for keys.
        concept_ids: int64 [num_views], of all ranks, in this numbering; on the host, or on the device if all that
            reads them is there.
        positions: int64 [num_views], the position of each in the concatenated inputs of all ranks.
        offsets: int [world_size + 1], the number of each rank's first view; the last is `num_views`.
    """

    side: int
    concept_ids: Tensor
    positions: Tensor
    offsets: tuple[int, ...]

    @property
    def num_views(self) -> int:
        """Number of views on all ranks."""
        return self.offsets[-1]

    @cached_property
    def counts(self) -> list[int]:
        """Number of views on each rank."""
        return [last - first for first, last in pairwise(self.offsets)]

    def order(self, rank: int) -> Tensor:
        """Return int64 [views of the rank], the position in the rank's input of each of its views."""
        first = self.offsets[rank]
        positions = self.positions[first : self.offsets[rank + 1]]
        return positions - first if first else positions

    def block(self, rank: int, features: Tensor | None) -> "ViewBlock":
        """Return the views of one rank."""
        start, stop = self.offsets[rank], self.offsets[rank + 1]
        return ViewBlock(self.side, self.concept_ids[start:stop], start, features)


@dataclass(frozen=True)
class ViewBlock:
    """Consecutive views of one side, sorted by concept id.

    Attributes:
        side: 0 or 1, see `ViewLayout`.
        concept_ids: int64 [n], see `ViewLayout`.
        start: the number of the first view within its side.
        features: float [n, d] of unit length, or None where they are on another rank.
    """

    side: int
    concept_ids: Tensor
    start: int
    features: Tensor | None

    def __len__(self) -> int:
        return len(self.concept_ids)

    def part(self, first: int, last: int) -> "ViewBlock":
        """Return views first to last - 1 of this block."""
        features = None if self.features is None else self.features[first:last]
        return replace(self, concept_ids=self.concept_ids[first:last], start=self.start + first, features=features)

    def within(self, whole: "ViewBlock") -> slice:
        """Return the rows of this part in a tensor over `whole`."""
        return slice(self.start - whole.start, self.start - whole.start + len(self))

    @property
    def span(self) -> slice:
        """The rows of this block in a tensor over its side."""
        return slice(self.start, self.start + len(self))

    def features_as(self, dtype: torch.dtype) -> Tensor:
        """Return the features, which must be on this rank, in `dtype`."""
        assert self.features is not None
        return self.features.to(dtype)


class BlockPair(NamedTuple):
    """Two blocks of views, and what a pass over all pairs of them accumulates for each view.

    Attributes:
        rows: a block.
        columns: a block.
        row_accumulator: the values of the rows, [rows, ...].
        column_accumulator: the values of the columns; None where another rank accumulates them.
        symmetric: whether rows and columns are the same views, and the accumulators the same tensor.
    """

    rows: ViewBlock
    columns: ViewBlock
    row_accumulator: Tensor
    column_accumulator: Tensor | None
    symmetric: bool = False

    @property
    def other_accumulator(self) -> Tensor | None:
        """The values of columns that are not also rows; None where nothing is accumulated for them."""
        return None if self.symmetric else self.column_accumulator


def gather_layout(side: int, concept_ids: Tensor, counts: list[int], ranks: Ranks) -> ViewLayout:
    """Sort this rank's concept ids on the host and gather those of all ranks with their positions, 16 bytes a view.

    Args:
        side: 0 or 1, see `ViewLayout`.
        concept_ids: int64 [counts[rank]], of this rank.
        counts: number of views on each rank.
        ranks: all of them call this.
    """
    offsets = (0, *accumulate(counts))
    own, order = concept_ids.cpu().sort(stable=True)
    mine = torch.stack([own, order + offsets[ranks.rank]], dim=1)
    ids, positions = ranks.all_gather_rows(mine.to(concept_ids.device), counts).cpu().T.contiguous()
    return ViewLayout(side, ids, positions, offsets)


def find_partners(layouts: list[ViewLayout]) -> list[NDArray[np.int64]]:
    """Return for each view the number of its partner on the other side, -1 if that side lacks its concept.

    The partner is the view at the same position of the global batch if it has the same concept, else the first
    view of the concept.
    """
    partners = []
    for layout in layouts:
        other = layouts[-1 - layout.side]
        own_ids, other_ids = layout.concept_ids.numpy(), other.concept_ids.numpy()
        # the other side's numbers by input position
        numbers = np.append(np.argsort(other.positions.numpy()), -1)
        ids, firsts = np.unique(other_ids[numbers[:-1]], return_index=True)
        at = np.searchsorted(ids, own_ids)
        known = np.append(ids, 0)[at] == own_ids
        known &= at < len(ids)
        first = np.where(known, numbers[np.append(firsts, -1)[at]], -1)
        same_position = numbers[layout.positions.numpy().clip(max=other.num_views)]
        agrees = (same_position >= 0) & (np.append(other_ids, 0)[same_position] == own_ids)
        partners.append(np.where(agrees, same_position, first))
    return partners


def count_occurrences(ids: Tensor, among: Tensor) -> Tensor:
    """Return how often each of `ids` occurs in `among`, which is not sorted for it; int64 of the shape of `ids`.

    Args:
        ids: int64 [n], sorted, on the host.
        among: int64, on the host.
    """
    distinct, inverse = torch.unique_consecutive(ids, return_inverse=True)
    places = torch.searchsorted(distinct, among)
    known = distinct[places.clamp(max=len(distinct) - 1)] == among if len(distinct) else torch.zeros_like(among).bool()
    return torch.bincount(places[known], minlength=len(distinct))[inverse]


def normalize_rows(tensors: tuple[Tensor, ...], order: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the concatenated rows at unit length in the given order, and their inverse lengths.

    Lengths and quotients are computed in float64: an error that all similarities of a row share, however small, is
    multiplied by the logit scale in the exponent. A row of zeros stays zero, with an inverse length of 0.

    Args:
        tensors: float [n_i, d] each.
        order: int64 [n], the position in the concatenation of each output row.
        dtype: of the result.

    Returns:
        `dtype` [n, d] and float64 [n].
    """
    total, width = sum(len(part) for part in tensors), tensors[0].shape[1]
    positions = torch.from_numpy(np.argsort(order.numpy())).to(tensors[0].device)
    result = tensors[0].new_empty((total, width), dtype=dtype)
    inverse = tensors[0].new_empty(total, dtype=torch.float64)
    first = 0
    for tensor in tensors:
        for rows in tensor.split(_ROWS):
            exact = rows.double()
            lengths = torch.linalg.vector_norm(exact, dim=1)
            scales = torch.where(lengths > 0, 1 / lengths, 0.0)
            into = positions[first : first + len(rows)]
            result[into] = (exact * scales[:, None]).to(dtype)
            inverse[into] = scales
            first += len(rows)
    return result, inverse


def normalize_rows_backward(
    gradient: Tensor, features: Tensor, inverse: Tensor, order: Tensor, factor: Tensor, like: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return `factor` times the gradients by the rows before normalization, from those by the unit rows.

    With x = r / |r| that is (g - <g, x> x) / |r|.

    Args:
        gradient: float [n, d], by the unit rows; overwritten.
        features: float [n, d], the unit rows.
        inverse: float64 [n], the inverse lengths.
        order: int64 [n], see `normalize_rows`.
        factor: float64 scalar.
        like: the tensors that were normalized; the results have their shapes and dtypes.

    Returns:
        The gradients, and float64 scalar, the sum over rows of <gradient, features>, times `factor`.
    """
    radial = _remove_radial(gradient, features, inverse, factor)
    del features  # freed, unless the caller holds it, before another tensor of its size is made
    ordered = torch.empty_like(gradient).index_copy_(0, order.to(gradient.device), gradient)
    parts = ordered.split([len(tensor) for tensor in like])
    return tuple(part.to(tensor.dtype) for part, tensor in zip(parts, like, strict=True)), radial * factor


def _remove_radial(gradient: Tensor, features: Tensor, inverse: Tensor, factor: Tensor) -> Tensor:
    """Turn gradients by unit rows into those by the rows, in place; return the sum of <gradient, features>."""
    radial = torch.zeros((), dtype=torch.float64, device=gradient.device)
    for rows, unit, scales in zip(gradient.split(_ROWS), features.split(_ROWS), inverse.split(_ROWS), strict=True):
        wide = unit.to(rows.dtype)
        along = (rows * wide).sum(dim=1, keepdim=True, dtype=torch.float64)
        radial += along.sum()
        rows.addcmul_(wide, along.to(rows.dtype), value=-1).mul_((scales * factor)[:, None].to(rows.dtype))
    return radial
