"""Views in the order in which the loss treats them: unit length, sorted by id, and back again."""

from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bali_ds.distributed import Ranks

_CHUNK = 256  # rows handled at a time, such that they stay in a CPU's cache


@dataclass(frozen=True)
class Side:
    """What all ranks know of one side of the similarity matrix: its queries, its keys, or both together.

    Views are numbered rank by rank, and by id within a rank.

    Attributes:
        number: 0 for queries or for both together, 1 for keys.
        ids: int64 [total], of all ranks, in this numbering.
        orders: one int64 array a rank, where in that rank's input each of its views stands.
        starts: int [world_size + 1], the number of each rank's first view; the last is `total`.
    """

    number: int
    ids: NDArray[np.int64]
    orders: tuple[NDArray[np.int64], ...]
    starts: tuple[int, ...]

    @property
    def total(self) -> int:
        """How many views there are on all ranks."""
        return self.starts[-1]

    @property
    def counts(self) -> list[int]:
        """How many views each rank has."""
        return [len(order) for order in self.orders]

    def given_places(self) -> NDArray[np.int64]:
        """Return int64 [total], where each view stands when the ranks' inputs follow each other."""
        return np.concatenate([order + first for order, first in zip(self.orders, self.starts, strict=False)])

    def block(self, rank: int, features: Tensor | None) -> "ViewBlock":
        """Return the views of one rank."""
        start, stop = self.starts[rank], self.starts[rank + 1]
        return ViewBlock(self.number, self.ids[start:stop], start, features)


@dataclass(frozen=True)
class ViewBlock:
    """Consecutive views of one side, sorted by id.

    Attributes:
        side: the number of the side.
        ids: int64 [n].
        start: the number of the first within the side.
        features: float [n, d] of unit length, or None where they are on another rank.
    """

    side: int
    ids: NDArray[np.int64]
    start: int
    features: Tensor | None

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, first: int, last: int) -> "ViewBlock":
        """Return views first to last - 1."""
        features = None if self.features is None else self.features[first:last]
        return replace(self, ids=self.ids[first:last], start=self.start + first, features=features)

    def within(self, whole: "ViewBlock") -> slice:
        """Return where this part of a block stands in an array over that block."""
        return slice(self.start - whole.start, self.start - whole.start + len(self))

    def wide(self, dtype: torch.dtype) -> Tensor:
        """Return the features, which must be here, in `dtype`."""
        assert self.features is not None
        return self.features.to(dtype)

    @property
    def span(self) -> slice:
        """Where the views stand in an array over the whole side."""
        return slice(self.start, self.start + len(self))


def gather_side(number: int, ids: Tensor, counts: list[int], ranks: Ranks) -> Side:
    """Exchange ids, 8 bytes a view, and number the views of all ranks."""
    starts = (0, *accumulate(counts))
    given_ids = ranks.all_gather_rows(ids, counts).cpu().numpy()
    orders = tuple(np.argsort(given_ids[first:last], kind="stable") for first, last in pairwise(starts))
    places = np.concatenate([order + first for order, first in zip(orders, starts, strict=False)])
    return Side(number, given_ids[places], orders, starts)


def unit_length(rows: tuple[Tensor, ...], order: NDArray[np.int64], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the rows at length 1 in the given order, and their inverse lengths.

    Lengths and quotients are taken in double precision: a common error of a row's similarities, however small,
    is multiplied by the logit scale in the exponent. A row of zeros stays one, with an inverse length of 0.

    Args:
        rows: float [n_i, d] tensors that count as one after the other.
        order: int64 [n], which row of theirs comes at each place.
        dtype: of the result.

    Returns:
        `dtype` [n, d] and float64 [n].
    """
    total, width = sum(len(part) for part in rows), rows[0].shape[1]
    places = torch.from_numpy(np.argsort(order)).to(rows[0].device)
    result = rows[0].new_empty((total, width), dtype=dtype)
    inverse = rows[0].new_empty(total, dtype=torch.float64)
    first = 0
    for part in rows:
        for chunk in part.split(_CHUNK):
            exact = chunk.double()
            lengths = torch.linalg.vector_norm(exact, dim=1)
            scales = torch.where(lengths > 0, 1 / lengths, 0.0)
            into = places[first : first + len(chunk)]
            result[into] = (exact * scales[:, None]).to(dtype)
            inverse[into] = scales
            first += len(chunk)
    return result, inverse


def through_unit_length(gradient: Tensor, features: Tensor, inverse: Tensor, factor: Tensor) -> Tensor:
    """Turn, in place, the gradient of unit rows into `factor` times that of the rows as given.

    Returns:
        float64 scalar, the sum over rows of <gradient, features>, times `factor`.
    """
    radial = torch.zeros((), dtype=torch.float64, device=gradient.device)
    for rows, unit, scales in zip(gradient.split(_CHUNK), features.split(_CHUNK), inverse.split(_CHUNK), strict=True):
        wide = unit.to(rows.dtype)
        along = (rows * wide).sum(dim=1, keepdim=True, dtype=torch.float64)
        radial += along.sum()
        rows.addcmul_(wide, along.to(rows.dtype), value=-1).mul_((scales * factor)[:, None].to(rows.dtype))
    return radial * factor
