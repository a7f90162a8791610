"""Sequences in a constant number of padded blocks, cut where padding is least."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bali_ds.data.masking import Vocabulary
from bali_ds.data.ragged import Ints, ranges, starts, within


class LengthBucket(NamedTuple):
    """A padded block as numpy arrays: input_ids int64 [n, L] and lengths int64 [n]."""

    input_ids: NDArray[np.int64]
    lengths: Ints


class Packed(NamedTuple):
    """Sequences in blocks, and where each went.

    Attributes:
        blocks: as many as asked for, by rising length; those left over hold one dummy.
        rows: int64 [n], the row of each sequence, counted through the blocks.
        origins: int64 [n], the flat position of each sequence's first token, counted through the blocks.
    """

    blocks: tuple[LengthBucket, ...]
    rows: Ints
    origins: Ints


def pack(tokens: Ints, lengths: Ints, count: int, pad_id: int, dummy: tuple[int, int]) -> Packed:
    """Put sequences into `count` blocks with the least padding that so many blocks allow.

    Args:
        tokens: int64 [T], flat.
        lengths: int64 [n], tokens of each sequence, 2 or more.
        count: number of blocks, whatever the lengths.
        pad_id: stands right of every sequence.
        dummy: the two tokens of the sequence in a block that would be empty.
    """
    widths = cut_lengths(lengths, count)
    block = np.searchsorted(widths, lengths)
    order = np.argsort(block, kind="stable")
    heights = np.bincount(block, minlength=widths.size)
    first_positions, first_rows = starts(heights * widths), starts(heights)
    rows, origins = np.empty_like(lengths), np.empty_like(lengths)
    places = within(heights)
    rows[order] = first_rows[block[order]] + places
    origins[order] = first_positions[block[order]] + places * widths[block[order]]
    flat = np.full(int((heights * widths).sum()), pad_id, np.int64)
    flat[ranges(origins, lengths)] = tokens
    sorted_lengths = lengths[order]
    blocks = [
        LengthBucket(flat[at : at + height * width].reshape(height, width), sorted_lengths[row : row + height])
        for at, row, height, width in zip(first_positions, first_rows, heights, widths, strict=True)
    ]
    left_over = [LengthBucket(np.array([dummy], np.int64), np.array([2], np.int64))] * (count - len(blocks))
    return Packed((*blocks, *left_over), rows, origins)


def cut_lengths(lengths: Ints, count: int) -> Ints:
    """Return the widths of at most `count` blocks, ascending, that hold all sequences with the least padding.

    Dynamic programming over the distinct lengths: the cheapest way to put the shortest j of them into b blocks
    ends in a block from i + 1 to j, after the cheapest way to put i of them into b - 1.
    """
    distinct, sequences = np.unique(lengths, return_counts=True)
    count = min(count, distinct.size)
    if count == 0:
        return distinct
    held = np.concatenate([[0], np.cumsum(sequences)])
    # area[i, j]: positions of a block that holds the distinct lengths i, ..., j; no block where i > j.
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


def padding_share(blocks: tuple[LengthBucket, ...]) -> float:
    """Return the share of positions in blocks that hold no token."""
    positions = sum(block.input_ids.size for block in blocks)
    return 1 - sum(int(block.lengths.sum()) for block in blocks) / positions


class Texts(NamedTuple):
    """Token sequences one after the other, T tokens in all.

    Attributes:
        tokens: int64 [T], as they are.
        lengths: int64 [n], tokens of each sequence.
        shown: int64 [T], as the model sees them.
        labeled: int64 [K], positions of tokens to predict, ascending.
    """

    tokens: Ints
    lengths: Ints
    shown: Ints
    labeled: Ints


NO_TEXTS = Texts(*[np.empty(0, np.int64)] * 4)


class PackedTexts(NamedTuple):
    """Some of the sequences in blocks.

    Attributes:
        blocks: of the shown tokens.
        rows: int64 [n], the row of each sequence, counted through the blocks.
        origins: int64 [n], the flat position of each sequence's first token, counted through the blocks.
        positions: int64 [T'], the flat position of each token.
        first_token: how many tokens precede them among all.
        labeled: int64 [K'], flat positions of tokens to predict.
        labels: int64 [K'], what stood there.
    """

    blocks: tuple[LengthBucket, ...]
    rows: Ints
    origins: Ints
    positions: Ints
    first_token: int
    labeled: Ints
    labels: Ints


def pack_texts(texts: Texts, first: int, last: int, count: int, vocabulary: Vocabulary) -> PackedTexts:
    """Put the sequences from `first` to before `last` into `count` blocks."""
    lengths = texts.lengths[first:last]
    begin = int(texts.lengths[:first].sum())
    end = begin + int(lengths.sum())
    dummy = (vocabulary.cls_id, vocabulary.sep_id)
    packed = pack(texts.shown[begin:end], lengths, count, vocabulary.pad_id, dummy)
    positions = ranges(packed.origins, lengths)
    labeled = texts.labeled[slice(*np.searchsorted(texts.labeled, (begin, end)))]
    return PackedTexts(
        packed.blocks,
        packed.rows,
        packed.origins,
        positions,
        begin,
        positions[labeled - begin],
        texts.tokens[labeled],
    )
