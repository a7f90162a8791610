"""Length buckets: sequences in a constant number of padded blocks, cut where padding is least."""

from typing import NamedTuple

import numpy as np

from bali_ds.data.batch import LengthBucket
from bali_ds.data.sequences import Ints, MaskedSequences, Vocabulary, ranges, starts, within


class Bucketed(NamedTuple):
    """Sequences in length buckets, and where each went.

    Attributes:
        buckets: as many as asked for, by rising length; those that would be empty hold one dummy.
        rows: int64 [n], the row of each sequence, counted through the buckets.
        origins: int64 [n], the flat position of each sequence's first token, counted through the buckets.
    """

    buckets: tuple[LengthBucket[Ints], ...]
    rows: Ints
    origins: Ints


def bucket(tokens: Ints, lengths: Ints, count: int, vocabulary: Vocabulary) -> Bucketed:
    """Put sequences into `count` buckets with the least padding that so many buckets allow.

    Args:
        tokens: int64 [T], flat.
        lengths: int64 [n], tokens of each sequence, 2 or more.
        count: number of buckets, whatever the lengths.
        vocabulary: has the pad token, and the two special tokens of the dummy in an empty bucket.
    """
    widths = bucket_widths(lengths, count)
    numbers = np.searchsorted(widths, lengths)
    order = np.argsort(numbers, kind="stable")
    heights = np.bincount(numbers, minlength=widths.size)
    first_positions, first_rows = starts(heights * widths), starts(heights)
    rows, origins = np.empty_like(lengths), np.empty_like(lengths)
    places = within(heights)
    rows[order] = first_rows[numbers[order]] + places
    origins[order] = first_positions[numbers[order]] + places * widths[numbers[order]]
    flat = np.full(int((heights * widths).sum()), vocabulary.pad_id, np.int64)
    flat[ranges(origins, lengths)] = tokens
    sorted_lengths = lengths[order]
    buckets = [
        LengthBucket(flat[at : at + height * width].reshape(height, width), sorted_lengths[row : row + height])
        for at, row, height, width in zip(first_positions, first_rows, heights, widths, strict=True)
    ]
    dummy = LengthBucket(np.array([[vocabulary.cls_id, vocabulary.sep_id]], np.int64), np.array([2], np.int64))
    return Bucketed((*buckets, *[dummy] * (count - len(buckets))), rows, origins)


def bucket_widths(lengths: Ints, count: int) -> Ints:
    """Return the widths of at most `count` buckets, ascending, that hold all sequences with the least padding.

    Dynamic programming over the distinct lengths: the cheapest way to put the shortest j of them into b buckets
    ends in a bucket from i + 1 to j, after the cheapest way to put i of them into b - 1.
    """
    distinct, sequences = np.unique(lengths, return_counts=True)
    count = min(count, distinct.size)
    if count == 0:
        return distinct
    held = np.concatenate([[0], np.cumsum(sequences)])
    # area[i, j]: positions of a bucket that holds the distinct lengths i, ..., j; infinite where i > j.
    area = np.triu((held[1:] - held[:-1, None]) * distinct).astype(np.float64)
    area[np.tri(distinct.size, k=-1, dtype=bool)] = np.inf
    cheapest, cuts = area[0], []
    for _ in range(count - 1):
        totals = cheapest[:-1, None] + area[1:]
        cuts.append(totals.argmin(axis=0))
        cheapest = totals.min(axis=0)
    last, widths = distinct.size - 1, [distinct.size - 1]
    for cut in reversed(cuts):
        last = int(cut[last])
        widths.append(last)
    return distinct[widths[::-1]]


def padding_share(buckets: tuple[LengthBucket[Ints], ...]) -> float:
    """Return the share of positions in buckets that hold no token."""
    positions = sum(each.input_ids.size for each in buckets)
    return 1 - sum(int(each.lengths.sum()) for each in buckets) / positions


class BucketedSequences(NamedTuple):
    """Some of the masked sequences, in length buckets.

    Attributes:
        buckets: of the tokens that the model sees.
        rows: int64 [n], the row of each sequence, counted through the buckets.
        origins: int64 [n], the flat position of each sequence's first token, counted through the buckets.
        positions: int64 [T'], the flat position of each token.
        first_token: how many tokens precede them among all.
        labeled: int64 [K'], flat positions of tokens to predict.
        labels: int64 [K'], the true tokens at these positions.
    """

    buckets: tuple[LengthBucket[Ints], ...]
    rows: Ints
    origins: Ints
    positions: Ints
    first_token: int
    labeled: Ints
    labels: Ints


def bucket_masked(
    sequences: MaskedSequences, first: int, last: int, count: int, vocabulary: Vocabulary
) -> BucketedSequences:
    """Put the sequences from `first` to before `last` into `count` buckets."""
    lengths = sequences.lengths[first:last]
    begin = int(sequences.lengths[:first].sum())
    end = begin + int(lengths.sum())
    bucketed = bucket(sequences.inputs[begin:end], lengths, count, vocabulary)
    positions = ranges(bucketed.origins, lengths)
    labeled = sequences.labeled[slice(*np.searchsorted(sequences.labeled, (begin, end)))]
    return BucketedSequences(
        *bucketed,
        positions=positions,
        first_token=begin,
        labeled=positions[labeled - begin],
        labels=sequences.tokens[labeled],
    )
