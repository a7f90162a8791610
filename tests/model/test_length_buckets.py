"""Length buckets against all cuts that there are, and against rows written out."""

from itertools import combinations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bali_ds.model.length_buckets import bucket_widths, buckets_of_packs, length_buckets
from tests.packs import random_pack

LENGTHS = st.lists(st.integers(2, 12), min_size=1, max_size=20).map(sorted)
COUNTS = st.integers(1, 5)


def positions(lengths, widths):
    return sum(min(width for width in widths if width >= length) for length in lengths)


@settings(max_examples=100, deadline=None)
@given(LENGTHS, COUNTS)
def test_cuts_are_the_best_of_all_cuts(lengths, count):
    widths = bucket_widths(np.array(lengths), count).tolist()
    distinct = sorted(set(lengths))
    assert len(widths) == min(count, len(distinct))
    others = [(*some, distinct[-1]) for some in combinations(distinct[:-1], len(widths) - 1)]
    assert positions(lengths, widths) == min(positions(lengths, other) for other in others)
    buckets = length_buckets(np.array(lengths), count)
    assert [bucket.shape[1] for bucket in buckets] == widths
    assert sum(height * width for height, width in (bucket.shape for bucket in buckets)) == positions(lengths, widths)


@settings(max_examples=100, deadline=None)
@given(LENGTHS, COUNTS)
def test_values_are_unpacked_into_rows_and_packed_again(lengths, count):
    values = torch.arange(2 * sum(lengths)).view(-1, 2)
    left = list(values.split(lengths))
    packed, buckets = [], length_buckets(np.array(lengths), count)
    for bucket, part in zip(buckets, values.split([each.size for each in buckets]), strict=True):
        rows = bucket.unpack(part)
        packed.append(bucket.pack(rows))
        assert rows.shape[:2] == bucket.shape
        own, left = left[: len(rows)], left[len(rows) :]
        assert torch.equal(torch.cat(own), part)
        padded = [torch.cat([each, each[-1:].expand(rows.shape[1] - len(each), 2)]) for each in own]
        assert torch.equal(rows, torch.stack(padded))
        valid = torch.tensor([[place < len(each) for place in range(rows.shape[1])] for each in own])
        assert valid.all() if bucket.valid is None else torch.equal(bucket.valid, valid)
    assert left == []
    assert torch.equal(torch.cat(packed), values)


@settings(max_examples=100, deadline=None)
@given(LENGTHS)
def test_nothing_is_padded_or_copied_where_there_are_as_many_buckets_as_lengths(lengths):
    buckets = length_buckets(np.array(lengths), len(set(lengths)))
    assert all(bucket.cells is bucket.sources is bucket.valid is None for bucket in buckets)
    values = torch.arange(sum(lengths))
    parts = values.split([bucket.size for bucket in buckets])
    rows = [bucket.unpack(part) for bucket, part in zip(buckets, parts, strict=True)]
    assert all(each.untyped_storage().data_ptr() == values.data_ptr() for each in rows)


def test_buckets_of_several_packs_follow_each_other():
    packs = [random_pack(3, 5, 9), random_pack(2), random_pack(2, 2, 4, 4, 7)]
    buckets = buckets_of_packs(packs, 2)
    values = torch.cat([packed.input_ids for packed in packs])
    parts = values.split([bucket.size for bucket in buckets])
    again = [bucket.pack(bucket.unpack(part)) for bucket, part in zip(buckets, parts, strict=True)]
    assert torch.equal(torch.cat(again), values)
    assert [bucket.shape for bucket in buckets] == [(2, 5), (1, 9), (1, 2), (4, 4), (1, 7)]
