"""Tiles of short packed sequences for `bali_ds.model.tile_attention`, which needs Triton and is imported on GPUs."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bali_ds.data.batch import PackedSequences
from bali_ds.data.sequences import Ints

LONGEST = 128
"""The most tokens of a tile, hence of a sequence."""
_SHORTEST = 64


class AttentionTiles(NamedTuple):
    """Packed sequences in tiles: as many sequences in a row as fit into each.

    Attributes:
        offsets: int32 [tiles + 1], the flat positions at which tiles begin and end.
        starts: int32 [T], the flat position of the first token of each token's sequence.
        size: most tokens of a tile.
    """

    offsets: Tensor
    starts: Tensor
    size: int


def tiles_of_packs(packs: Sequence[PackedSequences]) -> AttentionTiles | None:
    """Return the tiles of packs that follow each other; None if a sequence is longer than LONGEST."""
    lengths = np.concatenate([pack.lengths.numpy() for pack in packs])
    if lengths.max() > LONGEST:
        return None
    size = _SHORTEST if lengths.max() <= _SHORTEST else LONGEST
    positions = torch.cat([pack.positions for pack in packs])
    offsets = torch.from_numpy(tile_offsets(lengths, size)).to(torch.int32)
    if positions.is_cuda:  # a copy from memory that is not pinned would wait for the device
        offsets = offsets.pin_memory()
    starts = torch.arange(len(positions), device=positions.device) - positions
    return AttentionTiles(offsets.to(positions.device, non_blocking=True), starts.to(torch.int32), size)


def tile_offsets(lengths: Ints, size: int) -> Ints:
    """Return where tiles begin and end, int64 [tiles + 1].

    Args:
        lengths: int64 [n], of the sequences in their order, each at most `size`.
        size: most tokens of a tile.
    """
    ends = np.cumsum(lengths)
    # the first sequence that no longer fits into a tile that begins with each sequence
    following = np.searchsorted(ends, ends - lengths + size, side="right").tolist()
    firsts = [0]
    while firsts[-1] < lengths.size:
        firsts.append(following[firsts[-1]])
    return np.append(0, ends)[firsts]


def attend_in_tiles(
    query: Tensor, key: Tensor, value: Tensor, tiles: AttentionTiles,
    scaling: float | None, dropout: float, window: int | None,
) -> Tensor:  # fmt: skip
    """Return the values that each token attends to in its own sequence, float [T, h, e].

    Args:
        query: half precision [T, h, e].
        key: of the same shape.
        value: of the same shape.
        tiles: the sequences.
        scaling: of products; None for 1 / sqrt(e).
        dropout: of attention weights.
        window: a token sees those at a distance below this; None for all.
    """
    from bali_ds.model.tile_attention import tile_attention

    seed = torch.randint(2**62, (1,), device=query.device) if dropout else tiles.offsets[:1].long()
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return tile_attention(
        query, key, value, tiles.starts, tiles.offsets, seed, tiles.size, scaling, dropout, window or LONGEST
    )
