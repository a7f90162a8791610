"""What single objectives ask of a batch: facts to predict, second names, passages and their facts side by side."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bali_ds.data.ego_graphs import ConceptViews, Stars
from bali_ds.data.length_buckets import LengthBucket, PackedTexts, pack
from bali_ds.data.linearized import NO_STRINGS, Strings
from bali_ds.data.masking import Vocabulary
from bali_ds.data.ragged import Ints, ranges, starts
from bali_ds.data.reader import Samples
from bali_ds.randomness import Keys, below, derive


class Synonyms(NamedTuple):
    """Pairs of a name of a concept and another name of it, or the words of a mention of it.

    Attributes:
        views: int64 [S], ascending, the view whose concept it is.
        first: int64 [S], name ids.
        second: int64 [S], other name ids; none where mentions take their place.
        mentions: S token sequences; none where names take their place.
    """

    views: Ints
    first: Ints
    second: Ints
    mentions: Strings


_NOTHING = np.empty(0, np.int64)
NO_SYNONYMS = Synonyms(_NOTHING, _NOTHING, _NOTHING, NO_STRINGS)


def draw_synonyms(concepts: Ints, keys: Keys, name_offsets: NDArray[np.int64]) -> Synonyms:
    """Draw two of the names of each concept that has several, uniformly and without replacement.

    Args:
        concepts: int64 [V], the concept of each view.
        keys: uint64 [V], the key of each view.
        name_offsets: int64 [C + 1], the first name id of each concept.
    """
    begins = name_offsets[concepts].astype(np.int64)
    counts = name_offsets[concepts + 1].astype(np.int64) - begins
    views = np.flatnonzero(counts > 1)
    begins, counts, keys = begins[views], counts[views], keys[views]
    first = below(derive(keys, "first synonym"), counts)
    step = 1 + below(derive(keys, "second synonym"), counts - 1)
    return Synonyms(views, begins + first, begins + (first + step) % np.maximum(counts, 1), NO_STRINGS)


def draw_named_mentions(
    samples: Samples, views: ConceptViews, keys: Keys, name_offsets: NDArray[np.int64], longest: int
) -> Synonyms:
    """Draw a name of each concept that has one, and one of its mentions in the passage, both uniformly.

    Args:
        samples: with their tokens and mentions.
        views: their distinct concepts.
        keys: uint64 [V], the key of each view.
        name_offsets: int64 [C + 1], the first name id of each concept.
        longest: tokens to which the words of a mention are cut.
    """
    begins = name_offsets[views.concepts].astype(np.int64)
    counts = name_offsets[views.concepts + 1].astype(np.int64) - begins
    named = np.flatnonzero(counts)
    names = begins + below(derive(keys, "first synonym"), counts)
    per_view = np.bincount(views.of_mention, minlength=views.concepts.size)
    place = starts(per_view) + below(derive(keys, "named mention"), per_view)
    chosen = np.argsort(views.of_mention, kind="stable")[place[named]]
    first_tokens, ends = samples.mentions[chosen, :2].T.astype(np.int64)
    lengths = np.minimum(ends - first_tokens, longest)
    tokens = samples.tokens[ranges(starts(samples.lengths)[views.samples[named]] + first_tokens, lengths)]
    return Synonyms(named, names[named], names[:0], Strings(tokens, lengths))


def hold_out(stars: Stars, keys: Keys) -> NDArray[np.bool_]:
    """Return which of the drawn facts is to be predicted: one of each star that has two or more; bool [F]."""
    facts = stars.edge_relations.size // 2
    per_star = np.bincount(stars.views[stars.edge_index[0, :facts]], minlength=stars.targets.size)
    chosen = starts(per_star) + below(derive(keys, "held out"), per_star)
    held = np.zeros(facts, bool)
    held[chosen[per_star > 1]] = True
    return held


def side_by_side(
    original: Strings, triples: Strings, passages: PackedTexts, nodes: Ints, vocabulary: Vocabulary
) -> dict[str, NDArray[np.int64] | tuple[LengthBucket, ...]]:
    """Return what a decoder reads and writes of each passage.

    Args:
        original: the passages of a batch without masks.
        triples: their linearized facts.
        passages: the same passages, masked, in blocks.
        nodes: int64 [B], how many nodes belong to each passage, in order.
        vocabulary: of the shard set.

    Returns:
        "originals" and "triples", one block each; "original_positions" int64 [B, L], the flat position of each token
        in the masked passages; "passage_nodes" int64 [B, M], M >= 1, the nodes of each passage, then -1.
    """
    dummy = (vocabulary.cls_id, vocabulary.sep_id)
    blocks = [pack(*strings, 1, vocabulary.pad_id, dummy).blocks for strings in (original, triples)]
    places = np.minimum(np.arange(blocks[0][0].input_ids.shape[1]), original.lengths[:, None] - 1)
    slots = np.arange(max(int(nodes.max(initial=0)), 1))
    numbers = np.where(slots < nodes[:, None], starts(nodes)[:, None] + slots, -1)
    return {
        "originals": blocks[0],
        "triples": blocks[1],
        "original_positions": passages.origins[:, None] + places,
        "passage_nodes": numbers,
    }


def nothing_side_by_side() -> dict[str, NDArray[np.int64] | tuple[LengthBucket, ...]]:
    """Return the same fields where no decoder is trained."""
    empty = np.empty((0, 0), np.int64)
    return {"originals": (), "triples": (), "original_positions": empty, "passage_nodes": empty}
