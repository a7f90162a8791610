"""Packed values and adjacency lists, compared with Python's integers and plain arrays."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bali_ds.errors import InputError
from bali_ds.graph.packed_adjacency import (
    AdjacencyColumn,
    PackedAdjacency,
    bits_for,
    pack,
    pack_adjacency,
    packed_length,
    unpack,
)


@given(st.integers(1, 64), st.data())
def test_packed_values_are_the_bits_of_one_long_integer(width, data):
    values = data.draw(st.lists(st.integers(0, 2**width - 1), max_size=200))
    words = pack(np.array(values, np.uint64), width)
    assert words.size == packed_length(len(values), width)
    assert int.from_bytes(words.tobytes(), "little") == sum(v << (width * i) for i, v in enumerate(values))
    assert unpack(words, width, np.arange(len(values))).tolist() == values


def test_many_values_are_unpacked_in_any_order():
    random = np.random.default_rng(3)
    for width in (7, 34, 64):
        values = random.integers(0, 2**width, 2_200_000, np.uint64, endpoint=False) if width < 64 else None
        values = random.integers(0, 2**63, 1_100_000, np.uint64) * 2 + 1 if values is None else values
        positions = random.integers(0, values.size, (300, 7))
        assert (unpack(pack(values, width), width, positions) == values[positions]).all()


def test_bits_for_counts():
    assert [bits_for(count) for count in (0, 1, 2, 3, 4, 5, 2**22, 2**22 + 1)] == [1, 1, 1, 2, 2, 3, 22, 23]


@pytest.fixture
def packed():
    random = np.random.default_rng(4)
    kinds, neighbors = random.integers(0, 10, 500), random.integers(0, 1000, 500).astype(np.int32)
    words = pack_adjacency(kinds, neighbors, 5, 1000)
    relations, sources = np.arange(10, dtype=np.int32), np.arange(10, dtype=np.uint8) % 3
    adjacency = PackedAdjacency(words, 500, 1000, relations, sources, Path("edges.entries.npy"))
    return adjacency, kinds, neighbors, words


def test_columns_index_like_arrays(packed):
    adjacency, kinds, neighbors, _ = packed
    for selection in (slice(None), slice(7, 99, 4), slice(-5, None), slice(9, 2, -3), slice(3, 3)):
        assert AdjacencyColumn(adjacency)[selection].tolist() == neighbors[selection].tolist()
        assert AdjacencyColumn(adjacency, np.arange(10))[selection].tolist() == kinds[selection].tolist()
    positions = np.array([[3, 499], [0, 3]])
    assert AdjacencyColumn(adjacency)[positions].tolist() == neighbors[positions].tolist()
    assert int(AdjacencyColumn(adjacency)[12]) == neighbors[12]
    for beyond in (500, -1, np.array([0, 500])):
        with pytest.raises(IndexError):
            AdjacencyColumn(adjacency)[beyond]


def test_neighbors_and_kinds_outside_of_the_graph_are_refused(packed):
    _, _, _, words = packed
    relations, sources = np.arange(10, dtype=np.int32), np.zeros(10, np.uint8)
    for size, concepts, count in ((500, 990, 10), (500, 1000, 9), (502 + 64, 1000, 10), (499, 1000, 10)):
        with pytest.raises(InputError, match="damaged"):
            PackedAdjacency(words, size, concepts, relations[:count], sources, Path("x")).read(np.arange(size))
