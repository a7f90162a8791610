"""Token sequences of unequal length in flat arrays: the operations and types that the whole loader is made of."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


def starts(lengths: Ints) -> Ints:
    """Return where each row begins in the flat array, int64 [n]."""
    return np.cumsum(lengths) - lengths


def within(lengths: Ints) -> Ints:
    """Return the place of each element within its row: 0, 1, ..., lengths[0] - 1, 0, 1, ...; int64 [sum(lengths)]."""
    return np.arange(int(lengths.sum())) - np.repeat(starts(lengths), lengths)


def ranges(begins: Ints, lengths: Ints) -> Ints:
    """Return the indices begins[0], begins[0] + 1, ..., row after row; int64 [sum(lengths)]."""
    return np.arange(int(lengths.sum())) + np.repeat(begins - starts(lengths), lengths)


class TokenSequences(NamedTuple):
    """Token sequences, concatenated.

    Attributes:
        tokens: int64 [T], flat.
        lengths: int64 [n], tokens of each sequence.
    """

    tokens: Ints
    lengths: Ints

    @classmethod
    def join(cls, several: Sequence["TokenSequences"]) -> "TokenSequences":
        """Return the sequences of several, one after the other."""
        columns = zip(NO_SEQUENCES, *several, strict=True)
        return cls(*(np.concatenate(column) for column in columns))

    def part(self, first: int, last: int) -> "TokenSequences":
        """Return the sequences from `first` to before `last`."""
        begin, lengths = int(self.lengths[:first].sum()), self.lengths[first:last]
        return TokenSequences(self.tokens[begin : begin + int(lengths.sum())], lengths)

    def with_inserted(self, ids: Sequence[int], place: int) -> "TokenSequences":
        """Return the sequences with further tokens in each, before its token at `place`."""
        places = np.repeat(starts(self.lengths) + place, len(ids))
        return TokenSequences(np.insert(self.tokens, places, np.tile(ids, self.lengths.size)), self.lengths + len(ids))

    def framed(self, cls_id: int, sep_id: int) -> "TokenSequences":
        """Return the sequences with a token before and one after each."""
        begins = starts(self.lengths + 2)
        tokens = np.empty(self.tokens.size + 2 * self.lengths.size, np.int64)
        tokens[begins], tokens[begins + self.lengths + 1] = cls_id, sep_id
        tokens[ranges(begins + 1, self.lengths)] = self.tokens
        return TokenSequences(tokens, self.lengths + 2)


class MaskedSequences(NamedTuple):
    """Token sequences with some tokens hidden from the model, concatenated; T tokens in all.

    Attributes:
        tokens: int64 [T], the true tokens.
        lengths: int64 [n], tokens of each sequence.
        inputs: int64 [T], the tokens that the model sees.
        labeled: int64 [K], positions of tokens to predict, ascending.
    """

    tokens: Ints
    lengths: Ints
    inputs: Ints
    labeled: Ints


_EMPTY = np.empty(0, np.int64)
NO_SEQUENCES = TokenSequences(_EMPTY, _EMPTY)
NO_MASKED_SEQUENCES = MaskedSequences(_EMPTY, _EMPTY, _EMPTY, _EMPTY)


@dataclass(frozen=True)
class Vocabulary:
    """The special tokens, as the shard index names them.

    Attributes:
        cls_id, sep_id, pad_id, mask_id: ids of the tokens.
        special: bool [vocab_size], true at tokens that are never predicted.
        ordinary: int64, all other tokens, from which random replacements are drawn.
    """

    cls_id: int
    sep_id: int
    pad_id: int
    mask_id: int
    special: Flags
    ordinary: Ints

    @classmethod
    def from_index(cls, tokenizer: dict[str, Any], markers: Iterable[int] = ()) -> "Vocabulary":
        """Return the vocabulary of the `tokenizer` entry of a shard index; entity markers count as special tokens."""
        ids = {name: int(tokenizer[name]) for name in ("cls_id", "sep_id", "pad_id", "mask_id")}
        special = np.zeros(int(tokenizer["vocab_size"]), bool)
        special[[*ids.values(), *tokenizer["special_ids"], *markers]] = True
        return cls(**ids, special=special, ordinary=np.flatnonzero(~special))
