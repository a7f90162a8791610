"""Packed and padded sequences against lists of lists."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bali_ds.data.packing import pack, pack_masked, pad
from bali_ds.data.sequences import MaskedSequences, TokenSequences, Vocabulary
from tests.packs import rows_of

CLS, SEP, PAD = 7, 8, -1
VOCABULARY = Vocabulary(CLS, SEP, PAD, 9, np.zeros(10, bool), np.arange(10))
LENGTHS = st.lists(st.integers(2, 12), min_size=1, max_size=20)


def numbered(lengths):
    """Sequences of some lengths, no two with a token in common."""
    return [list(range(100 * number, 100 * number + length)) for number, length in enumerate(lengths, 1)]


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.sampled_from([None, VOCABULARY]))
def test_every_sequence_is_at_its_row_and_origin(lengths, vocabulary):
    sequences = numbered(lengths)
    packing = pack(np.concatenate(sequences), np.array(lengths), vocabulary)
    rows, flat = rows_of(packing.packed), packing.packed.input_ids.tolist()
    assert rows == sorted(sequences, key=len)
    for sequence, row, origin in zip(sequences, packing.rows.tolist(), packing.origins.tolist(), strict=True):
        assert rows[row] == sequence
        assert flat[origin : origin + len(sequence)] == sequence
    arrays = [*vars(packing.packed).values(), packing.rows, packing.origins]
    assert {array.dtype for array in arrays} == {np.dtype(np.int64)}


@pytest.mark.parametrize(("vocabulary", "expected"), [(None, []), (VOCABULARY, [[CLS, SEP]])], ids=["none", "dummy"])
def test_where_there_is_no_sequence_a_dummy_stands_in_if_wanted(vocabulary, expected):
    nothing = np.empty(0, np.int64)
    packing = pack(nothing, nothing, vocabulary)
    assert rows_of(packing.packed) == expected
    assert packing.packed.offsets.tolist() == [0, *[2 for _ in expected]]
    assert packing.rows.size == packing.origins.size == 0
    assert {array.dtype for array in vars(packing.packed).values()} == {np.dtype(np.int64)}


@settings(max_examples=100, deadline=None)
@given(LENGTHS)
def test_padded_rows_keep_their_order_and_end_in_padding(lengths):
    sequences = numbered(lengths)
    padded = pad(TokenSequences(np.concatenate(sequences), np.array(lengths)), PAD)
    assert padded.input_ids.tolist() == [row + [PAD] * (max(lengths) - len(row)) for row in sequences]
    assert padded.lengths.tolist() == lengths


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.data())
def test_masked_sequences_know_where_their_tokens_and_labels_went(lengths, draw):
    sequences = numbered(lengths)
    tokens, ends = np.concatenate(sequences), np.cumsum([0, *lengths]).tolist()
    labeled = sorted(draw.draw(st.sets(st.integers(0, tokens.size - 1))))
    inputs = tokens.copy()
    inputs[labeled] = 0
    first, last = sorted(draw.draw(st.tuples(*[st.integers(0, len(lengths))] * 2)))
    masked = MaskedSequences(tokens, np.array(lengths), inputs, np.array(labeled, np.int64))
    packing = pack_masked(masked, first, last, VOCABULARY)
    shown = [inputs[begin:end].tolist() for begin, end in pairwise(ends)][first:last]
    own = [place for place in labeled if ends[first] <= place < ends[last]]
    rows, flat = rows_of(packing.packed), packing.packed.input_ids
    assert rows == (sorted(shown, key=len) or [[CLS, SEP]])
    assert [rows[row] for row in packing.rows.tolist()] == shown
    assert flat[packing.positions].tolist() == [token for row in shown for token in row]
    assert packing.first_token == ends[first]
    assert packing.labels.tolist() == tokens[own].tolist()
    assert packing.labeled.tolist() == packing.positions[[place - ends[first] for place in own]].tolist()
    assert not flat[packing.labeled].any()
