"""Name codes: one number for each name of a graph and for each length of a hidden name, and the tokens of both."""

import numpy as np

from bali_ds.data.sequences import Flags, Ints, TokenSequences, ranges, starts
from bali_ds.shards.shard_set import Names


def name_codes(name_ids: Ints, hidden: Flags, table: Names) -> Ints:
    """Return the row of each name in a table of all names followed by those of 0, 1, 2, ... masks, int64 [n].

    A hidden name is as many masks as it has tokens. A concept without a name, or whose name has no token, is one mask.

    Args:
        name_ids: int64 [n], -1 for a concept without names.
        hidden: bool [n].
        table: the tokens of all names.
    """
    offsets = table.offsets
    sizes = np.where(name_ids < 0, 0, offsets[name_ids + 1] - offsets[name_ids])
    return np.where(hidden | (sizes == 0), offsets.size - 1 + np.maximum(sizes, 1), name_ids)


def name_tokens(codes: Ints, table: Names, mask_id: int) -> TokenSequences:
    """Return the tokens of the names with these codes, without special tokens.

    Args:
        codes: int64 [n], of `name_codes`.
        table: the tokens of all names.
        mask_id: the mask token.
    """
    count = table.offsets.size - 1
    shown = codes < count
    begins = table.offsets[np.where(shown, codes, 0)].astype(np.int64)
    lengths = np.where(shown, table.offsets[np.where(shown, codes + 1, 0)] - begins, codes - count)
    tokens = np.full(int(lengths.sum()), mask_id, np.int64)
    tokens[ranges(starts(lengths)[shown], lengths[shown])] = table.tokens[ranges(begins[shown], lengths[shown])]
    return TokenSequences(tokens, lengths)
