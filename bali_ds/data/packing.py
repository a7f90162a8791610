"""Packing: sequences one after the other, shortest first, so that nothing is padded."""

from typing import NamedTuple

import numpy as np

from bali_ds.data.batch import PackedSequences, PaddedSequences
from bali_ds.data.sequences import Ints, MaskedSequences, TokenSequences, Vocabulary, ranges, starts, within


class Packing(NamedTuple):
    """Packed sequences, and where each went.

    Attributes:
        packed: the sequences.
        rows: int64 [n], the row of each sequence.
        origins: int64 [n], the flat position of each sequence's first token.
    """

    packed: PackedSequences[Ints]
    rows: Ints
    origins: Ints


def pack(tokens: Ints, lengths: Ints, vocabulary: Vocabulary | None = None) -> Packing:
    """Pack sequences, shortest first.

    Args:
        tokens: int64 [T], flat.
        lengths: int64 [n], tokens of each sequence, 2 or more.
        vocabulary: has the two special tokens of the dummy that stands in where n is 0; None for no dummy.
    """
    if vocabulary and not lengths.size:
        dummy = pack(np.array([vocabulary.cls_id, vocabulary.sep_id]), np.array([2]))
        return Packing(dummy.packed, lengths, lengths)
    order = np.argsort(lengths, kind="stable")
    ascending = lengths[order]
    rows, origins = np.empty_like(lengths), np.empty_like(lengths)
    rows[order] = np.arange(lengths.size)
    origins[order] = starts(ascending)
    flat = tokens[ranges(starts(lengths)[order], ascending)]
    offsets = np.append(0, np.cumsum(ascending))
    return Packing(PackedSequences(flat, within(ascending), offsets, ascending), rows, origins)


def pad(sequences: TokenSequences, pad_id: int) -> PaddedSequences[Ints]:
    """Return sequences as the rows of a matrix, in their order, padded on the right."""
    lengths = sequences.lengths
    rows = np.full((lengths.size, int(lengths.max())), pad_id, np.int64)
    rows[np.arange(rows.shape[1]) < lengths[:, None]] = sequences.tokens
    return PaddedSequences(rows, lengths)


class PackedMasked(NamedTuple):
    """Some of the masked sequences, packed.

    Attributes:
        packed: of the tokens that the model sees.
        rows: int64 [n], the row of each sequence.
        origins: int64 [n], the flat position of each sequence's first token.
        positions: int64 [T'], the flat position of each token.
        first_token: how many tokens precede them among all.
        labeled: int64 [K'], flat positions of tokens to predict.
        labels: int64 [K'], the true tokens at these positions.
    """

    packed: PackedSequences[Ints]
    rows: Ints
    origins: Ints
    positions: Ints
    first_token: int
    labeled: Ints
    labels: Ints


def pack_masked(sequences: MaskedSequences, first: int, last: int, vocabulary: Vocabulary | None) -> PackedMasked:
    """Pack the sequences from `first` to before `last`; the vocabulary is that of `pack`."""
    lengths = sequences.lengths[first:last]
    begin = int(sequences.lengths[:first].sum())
    end = begin + int(lengths.sum())
    packing = pack(sequences.inputs[begin:end], lengths, vocabulary)
    positions = ranges(packing.origins, lengths)
    labeled = sequences.labeled[slice(*np.searchsorted(sequences.labeled, (begin, end)))]
    return PackedMasked(
        *packing,
        positions=positions,
        first_token=begin,
        labeled=positions[labeled - begin],
        labels=sequences.tokens[labeled],
    )
