"""What is hidden from the model, decided by (seed, epoch, sample) alone: tokens, mentions, concept names."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bali_ds.data.ragged import Ints, starts, within
from bali_ds.data.reader import Samples
from bali_ds.data.settings import StreamSettings
from bali_ds.randomness import Keys, below, derive, uniform

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
    labeled = np.flatnonzero((uniform(keys) < settings.token_masking) & ~covered & ~vocabulary.special[tokens])
    masked = tokens.copy()
    masked[covered] = vocabulary.mask_id
    keys = keys[labeled]
    fate = uniform(derive(keys, "fate"))
    masked[labeled[fate < _MASKED]] = vocabulary.mask_id
    changed = fate >= _MASKED_OR_KEPT
    drawn = below(derive(keys[changed], "token"), vocabulary.ordinary.size)
    masked[labeled[changed]] = vocabulary.ordinary[drawn]
    return masked, labeled


def mask_names(views: Keys, neighbors: Ints, settings: StreamSettings) -> Flags:
    """Return which concepts' own names are masked in the graph view, bool [V].

    Only a concept with two or more neighbors can be recognized without its name.

    Args:
        views: uint64 [V], the key of each view.
        neighbors: int64 [V], stored neighbors of each concept.
        settings: the share to mask.
    """
    return (uniform(derive(views, "name")) < settings.name_masking) & (neighbors >= 2)


def mark_mentions(samples: Samples, opening: int, closing: int) -> Samples:
    """Return samples with a token before and one after each mention, and the mentions where they are then.

    Mentions of the same tokens are marked once, one that overlaps a mention before it, or lies within one, is not;
    what stands within a mention that was not marked itself belongs to it still.

    Args:
        samples: sound ones, as stored.
        opening: the token id that goes before a mention.
        closing: the token id that goes after it.
    """
    sample_of_mention = np.repeat(np.arange(samples.lengths.size), samples.mention_counts)
    origins = starts(samples.lengths)[sample_of_mention]
    begins, ends = origins + samples.mentions[:, 0], origins + samples.mentions[:, 1]
    order = np.lexsort((-ends, begins))
    reached = np.maximum.accumulate(np.append(0, ends[order]))[:-1]
    marked = order[begins[order] >= reached]
    added = np.zeros(samples.tokens.size + 1, np.int64)
    added[begins[marked]] += 1  # no two begin, and no two end, at one token
    added[ends[marked]] += 1
    places = np.arange(samples.tokens.size) + np.cumsum(added)[:-1]
    tokens = np.empty(samples.tokens.size + 2 * marked.size, np.int64)
    tokens[places] = samples.tokens
    tokens[places[begins[marked]] - 1] = opening
    tokens[places[ends[marked] - 1] + 1] = closing
    lengths = samples.lengths + 2 * np.bincount(sample_of_mention[marked], minlength=samples.lengths.size)
    mentions = samples.mentions.copy()
    moved = starts(lengths)[sample_of_mention]
    mentions[:, 0], mentions[:, 1] = places[begins] - moved, places[ends - 1] + 1 - moved
    return samples._replace(tokens=tokens, lengths=lengths, mentions=mentions)
