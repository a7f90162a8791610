"""Masking of tokens, mentions and concept names, a function of (seed, epoch, sample) alone; markers and prompts."""

from collections.abc import Sequence

import numpy as np

from bali_ds.data.reader import Samples
from bali_ds.data.sequences import Flags, Ints, TokenSequences, Vocabulary, starts, within
from bali_ds.data.settings import StreamSettings
from bali_ds.randomness import Keys, below, derive, uniform

# Devlin et al., "BERT" (2019), 3.1: of the tokens to predict, 80 % become [MASK], 10 % a random token, 10 % stay.
_MASKED, _MASKED_OR_KEPT = 0.8, 0.9


def sample_keys(seed: int, repeats: Ints, sample_rows: Ints) -> Keys:
    """Return the key from which everything random about one use of each sample follows, uint64 [n]."""
    return derive(seed, repeats, sample_rows)


def mask_passages(
    tokens: Ints, lengths: Ints, mentioned: Flags, keys: Keys, settings: StreamSettings, vocabulary: Vocabulary
) -> tuple[Ints, Ints]:
    """Mask all mentions of some passages, and a share of the remaining ordinary tokens of all.

    Args:
        tokens: int64 [T], flat.
        lengths: int64 [n], tokens of each passage.
        mentioned: bool [T], true at tokens of mentions.
        keys: uint64 [n], of the passages.
        settings: the shares to mask, and the prompt that the passages begin with.
        vocabulary: of the shard set.

    Returns:
        The masked tokens, int64 [T], and the positions in it that are to be predicted, int64 [K], ascending.
        A token masked with its mention is not predicted, and neither is one of the prompt.
    """
    hidden = uniform(derive(keys, "mentions")) < settings.mention_masking
    covered = mentioned & np.repeat(hidden, lengths)
    places = within(lengths)
    token_keys = derive(np.repeat(keys, lengths), places)
    kept = covered | vocabulary.special[tokens] | (places <= len(settings.prompt))
    labeled = np.flatnonzero((uniform(token_keys) < settings.token_masking) & ~kept)
    masked = tokens.copy()
    masked[covered] = vocabulary.mask_id
    token_keys = token_keys[labeled]
    fate = uniform(derive(token_keys, "fate"))
    masked[labeled[fate < _MASKED]] = vocabulary.mask_id
    changed = fate >= _MASKED_OR_KEPT
    substitutes = below(derive(token_keys[changed], "token"), vocabulary.ordinary.size)
    masked[labeled[changed]] = vocabulary.ordinary[substitutes]
    return masked, labeled


def mask_names(view_keys: Keys, neighbors: Ints, settings: StreamSettings) -> Flags:
    """Return which concepts' own names are masked in the graph view, bool [V].

    Only a concept with two or more neighbors can be recognized without its name.

    Args:
        view_keys: uint64 [V], the key of each view.
        neighbors: int64 [V], stored neighbors of each concept.
        settings: the share to mask.
    """
    return (uniform(derive(view_keys, "name")) < settings.name_masking) & (neighbors >= 2)


def mark_mentions(samples: Samples, opening: int, closing: int) -> Samples:
    """Return samples with entity markers: a token before and one after each mention; mentions are moved accordingly.

    Mentions of the same tokens are marked once. A mention that overlaps an earlier one, or lies inside it, gets no
    markers of its own; markers inside its span belong to it.

    Args:
        samples: valid ones, as stored.
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


def prepend_prompt(samples: Samples, prompt: Sequence[int]) -> Samples:
    """Return samples with a prompt after the token that begins each passage; mentions are moved accordingly.

    Args:
        samples: valid ones, with their markers.
        prompt: token ids.
    """
    tokens, lengths = TokenSequences(samples.tokens, samples.lengths).with_inserted(prompt, 1)
    mentions = samples.mentions + np.array([len(prompt), len(prompt), 0], np.int32)
    return samples._replace(tokens=tokens, lengths=lengths, mentions=mentions)
