"""Runs tile_attention_cases.py, and tests of tiles themselves, which need no Triton."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bali_ds.model.attention_tiles import LONGEST, tile_offsets, tiles_of_packs
from tests.packs import random_pack
from tests.triton_interpreter import needs_triton, run_cases


@needs_triton
def test_kernels():
    run_cases(__file__, "tile_attention_cases.py")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 16), min_size=1, max_size=40))
def test_tiles_take_one_sequence_after_the_other_until_one_does_not_fit(lengths):
    tiles = [0]
    for length in lengths:
        if tiles[-1] + length > 16:
            tiles.append(0)
        tiles[-1] += length
    expected = [sum(tiles[:number]) for number in range(len(tiles) + 1)]
    assert tile_offsets(np.array(lengths), 16).tolist() == expected


def test_tiles_of_several_packs_follow_each_other():
    """Lengths are not ascending from pack to pack, and a tile may hold sequences of two."""
    tiles = tiles_of_packs([random_pack(20, 60), random_pack(3, 30), random_pack(64)])
    assert tiles.offsets.tolist() == [0, 20, 83, 113, 177]
    begins = [begin for begin, length in ((0, 20), (20, 60), (80, 3), (83, 30), (113, 64)) for _ in range(length)]
    assert tiles.starts.tolist() == begins
    assert tiles.offsets.dtype == tiles.starts.dtype == torch.int32
    assert tiles.size == 64


def test_the_longest_sequence_decides_on_the_size_of_tiles():
    assert tiles_of_packs([random_pack(2, 65), random_pack(3)]).size == LONGEST == 128
    assert tiles_of_packs([random_pack(3), random_pack(128)]).offsets.tolist() == [0, 3, 131]
    assert tiles_of_packs([random_pack(2, 129), random_pack(3)]) is None
