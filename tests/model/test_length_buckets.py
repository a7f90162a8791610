from itertools import combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bali_ds.data.length_buckets import bucket, bucket_widths, padding_share
from bali_ds.data.sequences import Vocabulary

VOCABULARY = Vocabulary(7, 8, -1, 9, np.zeros(10, bool), np.arange(10))
LENGTHS = st.lists(st.integers(2, 12), min_size=1, max_size=20)


def positions(lengths, widths):
    return sum(min(width for width in widths if width >= length) for length in lengths)


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(1, 5))
def test_cuts_are_the_best_of_all_cuts(lengths, count):
    widths = bucket_widths(np.array(lengths), count).tolist()
    distinct = sorted(set(lengths))
    assert len(widths) == min(count, len(distinct))
    others = [(*some, distinct[-1]) for some in combinations(distinct[:-1], len(widths) - 1)]
    assert positions(lengths, widths) == min(positions(lengths, other) for other in others)


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(1, 5))
def test_every_sequence_is_at_its_row_and_origin(lengths, count):
    sequences = [list(range(100 * number, 100 * number + length)) for number, length in enumerate(lengths, 1)]
    bucketed = bucket(np.concatenate(sequences), np.array(lengths), count, VOCABULARY)
    assert len(bucketed.buckets) == count
    flat = np.concatenate([each.input_ids.ravel() for each in bucketed.buckets])
    rows = [
        ids[:length].tolist()
        for each in bucketed.buckets
        for ids, length in zip(each.input_ids, each.lengths, strict=True)
    ]
    for sequence, row, origin in zip(sequences, bucketed.rows, bucketed.origins, strict=True):
        assert rows[row] == sequence
        assert flat[origin : origin + len(sequence)].tolist() == sequence
    assert sorted(map(len, rows)) == sorted([*lengths, *[2] * (len(rows) - len(lengths))])
    held = sum(map(len, rows))
    assert padding_share(bucketed.buckets) == 1 - held / flat.size
    assert np.count_nonzero(flat != -1) == held
