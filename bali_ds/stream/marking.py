"""Two tokens around each mention, so that the encoder is told where it begins and ends."""

import numpy as np

from bali_ds.stream.ragged import starts
from bali_ds.stream.reader import Samples


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
