"""Views in the order of their concept ids and the runs of equal ids, found on the device without waiting for it."""

from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from bali_ds.distributed import Ranks
from bali_ds.losses.contrastive.sorted_views import ViewLayout

_ANCHORS = 128  # of one program


class Runs(NamedTuple):
    """Where the ids of some anchors are in a sorted array of ids.

    Attributes:
        begins: int32 [anchors], the first position of the id, plus an offset.
        ends: int32 [anchors], one past the last; the same as `begins` where the array lacks the id.
        partners: int32 [anchors], the position of the view with the anchor's own input position if it has the same id,
            else of the first view of the id, -1 if there is none; None if they were not asked for.
        lengths: float64 [anchors], the length of each run; with partners 1 if there is one, else 0.
    """

    begins: Tensor
    ends: Tensor
    partners: Tensor | None
    lengths: Tensor

    def of(self, anchors: slice) -> "Runs":
        """Return the runs of some of the anchors."""
        partners = None if self.partners is None else self.partners[anchors]
        return Runs(self.begins[anchors], self.ends[anchors], partners, self.lengths[anchors])


@triton.jit
def _lower_bounds(ids, sorted_ids, low, high, exists, steps, after: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the first positions in [low, high) whose value is not less than each id (with `after`: is greater)."""
    for _ in range(steps):
        middle = (low + high) // 2
        active = exists & (low < high)
        value = tl.load(sorted_ids + middle, active, other=0)
        right = active & (value <= ids) if after else active & (value < ids)
        low = tl.where(right, middle + 1, low)
        high = tl.where(active & (right == 0), middle, high)
    return low


# Vectors are parts of others: kernels depend neither on their alignment nor on numbers that differ from step to step.
@triton.jit(
    do_not_specialize=[
        "ids", "positions", "sorted_ids", "sorted_positions", "lengths", "num_anchors", "num_others", "offset",
        "steps",
    ]
)  # fmt: skip
def _runs_kernel(  # type: ignore[no-untyped-def]
    ids, positions, sorted_ids, sorted_positions, begins, ends, partners, lengths, num_anchors, num_others, offset,
    steps, block: tl.constexpr, with_partners: tl.constexpr,
):  # fmt: skip
    anchor = tl.program_id(0) * block + tl.arange(0, block)
    exists = anchor < num_anchors
    wanted = tl.load(ids + anchor, exists, other=0)
    low = tl.zeros((block,), tl.int32)
    begin = _lower_bounds(wanted, sorted_ids, low, low + num_others, exists, steps, False)
    end = _lower_bounds(wanted, sorted_ids, begin, low + num_others, exists, steps, True)
    tl.store(begins + anchor, begin + offset, exists)
    tl.store(ends + anchor, end + offset, exists)
    length = end - begin
    if with_partners:
        # Views of one id are in the order of their input positions.
        position = tl.load(positions + anchor, exists, other=0)
        same = _lower_bounds(position, sorted_positions, begin, end, exists, steps, False)
        found = exists & (same < end)
        found = found & (tl.load(sorted_positions + same, found, other=-1) == position)
        partner = tl.where(found, same, tl.where(begin < end, begin, -1))
        tl.store(partners + anchor, partner, exists)
        length = tl.minimum(length, 1)
    tl.store(lengths + anchor, length.to(tl.float64), exists)


def find_runs(
    ids: Tensor, sorted_ids: Tensor, offset: int = 0, positions: Tensor | None = None,
    sorted_positions: Tensor | None = None, lengths: Tensor | None = None,
) -> Runs:  # fmt: skip
    """Return where each id is in a sorted array.

    Args:
        ids: int64 [anchors].
        sorted_ids: int64 [others], sorted.
        offset: added to begins and ends.
        positions: int64 [anchors], input positions of the anchors, if partners are wanted.
        sorted_positions: int64 [others], input positions, ascending where ids are equal.
        lengths: float64 [anchors], where to write the lengths; None for a new tensor.
    """
    begins, ends = (torch.empty(len(ids), dtype=torch.int32, device=ids.device) for _ in range(2))
    partners = None if positions is None else torch.empty_like(begins)
    if lengths is None:
        lengths = torch.empty(len(ids), dtype=torch.float64, device=ids.device)
    if len(ids):
        _runs_kernel[(triton.cdiv(len(ids), _ANCHORS),)](
            ids, positions, sorted_ids, sorted_positions, begins, ends, partners, lengths, len(ids),
            len(sorted_ids), offset, len(sorted_ids).bit_length(), _ANCHORS, partners is not None,
        )  # fmt: skip
    return Runs(begins, ends, partners, lengths)


@dataclass(frozen=True)
class IndexedLayout(ViewLayout):
    """A layout on the device, with the views of all ranks sorted by concept id and then by input position.

    Attributes:
        sorted_ids: int64 [num_views], concept ids.
        sorted_positions: int64 [num_views], the position of each in the concatenated inputs of all ranks.
        sorted_numbers: int64 [num_views], the number of each in this layout; None if that is the same order.
    """

    sorted_ids: Tensor
    sorted_positions: Tensor
    sorted_numbers: Tensor | None


def sort_views(side: int, concept_ids: Tensor, counts: list[int], ranks: Ranks) -> IndexedLayout:
    """Gather the concept ids of all ranks (8 bytes a view) and number the views; nothing leaves the device.

    Args:
        side: 0 or 1, see `ViewLayout`.
        concept_ids: int64 [counts[rank]], of this rank.
        counts: number of views on each rank.
        ranks: all of them call this.
    """
    offsets = (0, *accumulate(counts))
    everyone = ranks.all_gather_rows(concept_ids, counts)
    sorted_ids, by_id = everyone.sort(stable=True)
    if ranks.world_size == 1:
        return IndexedLayout(side, sorted_ids, by_id, offsets, sorted_ids, by_id, None)
    ends = torch.tensor(offsets[1:]).to(by_id.device, non_blocking=True)  # without a wait for the gather
    by_rank = torch.bucketize(by_id, ends, right=True).sort(stable=True).indices
    positions = by_id[by_rank]
    numbers = torch.empty_like(by_rank).scatter_(0, by_rank, torch.arange(len(by_rank), device=by_rank.device))
    return IndexedLayout(side, everyone[positions], positions, offsets, sorted_ids, by_id, numbers)


def find_occurrences(layout: IndexedLayout, other: IndexedLayout, lengths: Tensor, *, partners: bool) -> Runs:
    """Return how the views of one side occur on the other, all ranks included.

    Args:
        layout: the side of the anchors.
        other: the side of their positives.
        lengths: float64 [views], where the lengths of the runs are written.
        partners: whether to find the partner of each view, by its number on the other side.

    Returns:
        Runs within `other.sorted_ids`; `partners` are numbers of views.
    """
    positions = layout.positions if partners else None
    runs = find_runs(layout.concept_ids, other.sorted_ids, 0, positions, other.sorted_positions, lengths)
    if runs.partners is None or other.sorted_numbers is None or not other.num_views:
        return runs
    at = runs.partners.long()
    numbers = other.sorted_numbers[at.clamp(min=0)]
    return runs._replace(partners=numbers.where(at >= 0, -1).int())
