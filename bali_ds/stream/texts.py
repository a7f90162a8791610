"""Masked token sequences of a step, and their way into the blocks of a batch."""

from typing import NamedTuple

import numpy as np

from bali_ds.stream.blocks import Block, pack
from bali_ds.stream.masking import Vocabulary
from bali_ds.stream.ragged import Ints, ranges


class Texts(NamedTuple):
    """Token sequences one after the other, T tokens in all.

    Attributes:
        tokens: int64 [T], as they are.
        lengths: int64 [n], tokens of each sequence.
        shown: int64 [T], as the model sees them.
        labelled: int64 [K], positions of tokens to predict, ascending.
    """

    tokens: Ints
    lengths: Ints
    shown: Ints
    labelled: Ints


NO_TEXTS = Texts(*[np.empty(0, np.int64)] * 4)


class PackedTexts(NamedTuple):
    """Some of the sequences in blocks.

    Attributes:
        blocks: of the shown tokens.
        rows: int64 [n], the row of each sequence, counted through the blocks.
        origins: int64 [n], the flat position of each sequence's first token, counted through the blocks.
        positions: int64 [T'], the flat position of each token.
        first_token: how many tokens precede them among all.
        labelled: int64 [K'], flat positions of tokens to predict.
        labels: int64 [K'], what stood there.
    """

    blocks: tuple[Block, ...]
    rows: Ints
    origins: Ints
    positions: Ints
    first_token: int
    labelled: Ints
    labels: Ints


def pack_texts(texts: Texts, first: int, last: int, count: int, vocabulary: Vocabulary) -> PackedTexts:
    """Put the sequences from `first` to before `last` into `count` blocks."""
    lengths = texts.lengths[first:last]
    begin = int(texts.lengths[:first].sum())
    end = begin + int(lengths.sum())
    dummy = (vocabulary.cls_id, vocabulary.sep_id)
    packed = pack(texts.shown[begin:end], lengths, count, vocabulary.pad_id, dummy)
    positions = ranges(packed.origins, lengths)
    labelled = texts.labelled[slice(*np.searchsorted(texts.labelled, (begin, end)))]
    return PackedTexts(
        packed.blocks,
        packed.rows,
        packed.origins,
        positions,
        begin,
        positions[labelled - begin],
        texts.tokens[labelled],
    )
