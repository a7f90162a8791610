from itertools import combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bali_ds.data.length_buckets import cut_lengths, pack, padding_share

LENGTHS = st.lists(st.integers(2, 12), min_size=1, max_size=20)


def positions(lengths, widths):
    return sum(min(width for width in widths if width >= length) for length in lengths)


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(1, 5))
def test_cuts_are_the_best_of_all_cuts(lengths, count):
    widths = cut_lengths(np.array(lengths), count).tolist()
    distinct = sorted(set(lengths))
    assert len(widths) == min(count, len(distinct))
    others = [(*some, distinct[-1]) for some in combinations(distinct[:-1], len(widths) - 1)]
    assert positions(lengths, widths) == min(positions(lengths, other) for other in others)


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(1, 5))
def test_every_sequence_is_found_where_pack_says(lengths, count):
    sequences = [list(range(100 * number, 100 * number + length)) for number, length in enumerate(lengths, 1)]
    packed = pack(np.concatenate(sequences), np.array(lengths), count, -1, (7, 8))
    assert len(packed.blocks) == count
    flat = np.concatenate([block.input_ids.ravel() for block in packed.blocks])
    rows = [ids[:length].tolist() for block in packed.blocks for ids, length in zip(*block, strict=True)]
    for sequence, row, origin in zip(sequences, packed.rows, packed.origins, strict=True):
        assert rows[row] == sequence
        assert flat[origin : origin + len(sequence)].tolist() == sequence
    assert sorted(map(len, rows)) == sorted([*lengths, *[2] * (len(rows) - len(lengths))])
    held = sum(map(len, rows))
    assert padding_share(packed.blocks) == 1 - held / flat.size
    assert np.count_nonzero(flat != -1) == held
