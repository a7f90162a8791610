"""What is hidden from the model, decided by (seed, epoch, sample) alone: tokens, mentions, concept names."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bali_ds.randomness import Keys, below, derive, uniform
from bali_ds.stream.ragged import Ints, within
from bali_ds.stream.settings import StreamSettings

Flags = NDArray[np.bool_]

# Devlin et al., "BERT" (2019), 3.1: of the tokens to predict, 80 % become [MASK], 10 % a random token, 10 % stay.
_MASKED, _MASKED_OR_KEPT = 0.8, 0.9


@dataclass(frozen=True)
class Vocabulary:
    """The tokens with a role of their own, as the shard index names them.

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
        """Return the vocabulary that the `tokenizer` entry of a shard index describes; markers are special, too."""
        ids = {name: int(tokenizer[name]) for name in ("cls_id", "sep_id", "pad_id", "mask_id")}
        special = np.zeros(int(tokenizer["vocab_size"]), bool)
        special[[*ids.values(), *tokenizer["special_ids"], *markers]] = True
        return cls(**ids, special=special, ordinary=np.flatnonzero(~special))


def visit_keys(seed: int, occasions: Ints, rows: Ints) -> Keys:
    """Return the key from which everything random about each visit of a sample follows, uint64 [n]."""
    return derive(seed, occasions, rows)


def mask_passages(
    tokens: Ints, lengths: Ints, mentioned: Flags, visits: Keys, settings: StreamSettings, vocabulary: Vocabulary
) -> tuple[Ints, Ints]:
    """Hide all mentions of some passages, and a share of the remaining ordinary tokens of all.

    Args:
        tokens: int64 [T], flat.
        lengths: int64 [n], tokens of each passage.
        mentioned: bool [T], true at tokens of mentions.
        visits: uint64 [n].
        settings: the shares to mask.
        vocabulary: of the shard set.

    Returns:
        The masked tokens, int64 [T], and the positions in it that are to be predicted, int64 [K], ascending.
        A token hidden with its mention is not predicted.
    """
    hidden = uniform(derive(visits, "mentions")) < settings.mention_masking
    covered = mentioned & np.repeat(hidden, lengths)
    keys = derive(np.repeat(visits, lengths), within(lengths))
    labelled = np.flatnonzero((uniform(keys) < settings.token_masking) & ~covered & ~vocabulary.special[tokens])
    masked = tokens.copy()
    masked[covered] = vocabulary.mask_id
    keys = keys[labelled]
    fate = uniform(derive(keys, "fate"))
    masked[labelled[fate < _MASKED]] = vocabulary.mask_id
    changed = fate >= _MASKED_OR_KEPT
    drawn = below(derive(keys[changed], "token"), vocabulary.ordinary.size)
    masked[labelled[changed]] = vocabulary.ordinary[drawn]
    return masked, labelled


def mask_names(views: Keys, neighbours: Ints, settings: StreamSettings) -> Flags:
    """Return which concepts' own names are masked in the graph view, bool [V].

    Only a concept with two or more neighbours can be recognised without its name.

    Args:
        views: uint64 [V], the key of each view.
        neighbours: int64 [V], stored neighbours of each concept.
        settings: the share to mask.
    """
    return (uniform(derive(views, "name")) < settings.name_masking) & (neighbours >= 2)
