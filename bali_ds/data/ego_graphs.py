"""Views: the distinct concepts of each passage, and where its text and its stored edges speak of them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bali_ds.data.ragged import Ints, ranges, starts, within
from bali_ds.data.reader import Samples
from bali_ds.randomness import Keys, below, choose, derive

# Concept ids are int32: however wrong they are, keys of two samples so far apart never meet, nor overflow int64.
_ID_RANGE = 1 << 32


class ConceptViews(NamedTuple):
    """The distinct concepts of each sample, by sample, then by order of first mention.

    Attributes:
        samples: int64 [V], the sample of each view, counted within the batch.
        concepts: int64 [V], the concept of each view.
        of_mention: int64 [M], the view that each mention belongs to.
        edge_begins: int64 [V], the first stored edge of each view.
        edge_counts: int64 [V], stored edges of each view.
        stray_edges: int64, samples with edges that do not follow their concepts in order of first mention.
    """

    samples: Ints
    concepts: Ints
    of_mention: Ints
    edge_begins: Ints
    edge_counts: Ints
    stray_edges: Ints


def concept_keys(sample_numbers: Ints, concepts: NDArray[np.int32]) -> Ints:
    """Return an int64 for each pair of a sample and a concept id, equal where both are, in the order of samples.

    Args:
        sample_numbers: int64 [n], from 0 to 2**31 - 1.
        concepts: int32 [n], any, so that samples need not be sound.
    """
    return sample_numbers * _ID_RANGE + concepts


def find_views(samples: Samples) -> ConceptViews:
    """Return the views of samples, sound or not: each concept of each passage once."""
    sample_of_mention = np.repeat(np.arange(samples.rows.size), samples.mention_counts)
    mentions = concept_keys(sample_of_mention, samples.mentions[:, 2])
    distinct, first, inverse = np.unique(mentions, return_index=True, return_inverse=True)
    by_first_mention = np.argsort(first)
    view_of_distinct = np.empty_like(by_first_mention)
    view_of_distinct[by_first_mention] = np.arange(by_first_mention.size)

    sample_of_edge = np.repeat(np.arange(samples.rows.size), samples.edge_counts)
    edges = concept_keys(sample_of_edge, samples.edges[:, 0])
    heads = np.flatnonzero(np.append(True, edges[1:] != edges[:-1])[: edges.size])
    sizes = np.diff(heads, append=edges.size)
    places = np.searchsorted(distinct, edges[heads])
    known = places < distinct.size
    known[known] = distinct[places[known]] == edges[heads[known]]
    views = view_of_distinct[places[known]]
    astray = ~known
    astray[known] = np.diff(views, prepend=-1) <= 0
    begins, counts = np.zeros(distinct.size, np.int64), np.zeros(distinct.size, np.int64)
    begins[views], counts[views] = heads[known], sizes[known]
    ordered = first[by_first_mention]
    return ConceptViews(
        sample_of_mention[ordered],
        samples.mentions[ordered, 2].astype(np.int64),
        view_of_distinct[inverse],
        begins,
        counts,
        sample_of_edge[heads[astray]],
    )


def mention_tokens(samples: Samples, views: ConceptViews, *, each: bool = False) -> tuple[Ints, Ints, Ints]:
    """Return the flat token positions of mentions, int64 [P], the text view of each, and the view of each text view.

    A text view is all mentions of a view, and a token inside two of them counts once; with `each`, every mention is
    a text view of its own. Both are in the order of the views.
    """
    text_of_mention, view_of_text = views.of_mention, np.arange(views.concepts.size)
    if each:
        order = np.argsort(views.of_mention, kind="stable")
        text_of_mention, view_of_text = np.empty_like(order), views.of_mention[order]
        text_of_mention[order] = np.arange(order.size)
    begins, ends = samples.mentions[:, 0].astype(np.int64), samples.mentions[:, 1].astype(np.int64)
    sample_begins = np.repeat(starts(samples.lengths), samples.mention_counts)
    positions = ranges(sample_begins + begins, ends - begins)
    distinct = np.unique(np.repeat(text_of_mention, ends - begins) * samples.tokens.size + positions)
    size = max(samples.tokens.size, 1)
    return distinct % size, distinct // size, view_of_text


class Stars(NamedTuple):
    """V stars with N nodes and E messages; the first node of a star is its concept.

    Attributes:
        concepts: int64 [N], the concept id of each node.
        views: int64 [N], the star of each node.
        slots: int64 [N], the node's place in its star.
        targets: int64 [V], the node that is each star's concept.
        edge_index: int64 [2, E], source and target of each message, both ways for each drawn fact.
        edge_relations: int64 [E], the relation as read from the target of the message.
    """

    concepts: Ints
    views: Ints
    slots: Ints
    targets: Ints
    edge_index: NDArray[np.int64]
    edge_relations: Ints


_NONE = np.empty(0, np.int64)
NO_STARS = Stars(_NONE, _NONE, _NONE, _NONE, np.empty((2, 0), np.int64), _NONE)


def draw_stars(
    concepts: Ints, keys: Keys, edges: NDArray[np.int32], begins: Ints, counts: Ints, fan_out: int, num_relations: int
) -> Stars:
    """Draw up to `fan_out` of the stored neighbors of each view, uniformly and without replacement.

    Args:
        concepts: int64 [V], the concept of each view.
        keys: uint64 [V], the key of each view.
        edges: int32 [all, 3]: concept id, relation id, neighbor id.
        begins: int64 [V], the first stored edge of each view in `edges`.
        counts: int64 [V], stored edges of each view.
        fan_out: neighbors to draw.
        num_relations: R, relations in one direction; relation r + R is the inverse of r.
    """
    chosen = choose(derive(keys, "neighbours"), counts, fan_out)
    drawn = np.minimum(counts, fan_out)
    picked = edges[(begins[:, None] + chosen)[chosen >= 0]].astype(np.int64)
    sizes = 1 + drawn
    targets, slots = starts(sizes), within(sizes)
    nodes = np.empty(int(sizes.sum()), np.int64)
    nodes[targets] = concepts
    neighbors = ranges(targets + 1, drawn)
    nodes[neighbors] = picked[:, 2]
    centers, relations = np.repeat(targets, drawn), picked[:, 1]
    return Stars(
        nodes,
        np.repeat(np.arange(concepts.size), sizes),
        slots,
        targets,
        np.stack([np.concatenate([neighbors, centers]), np.concatenate([centers, neighbors])]),
        np.concatenate([relations, (relations + num_relations) % (2 * num_relations)]),
    )


def draw_names(stars: Stars, keys: Keys, name_offsets: NDArray[np.int64]) -> Ints:
    """Draw one of each node's names, uniformly; the name ids, int64 [N], -1 for a concept without names."""
    begins = name_offsets[stars.concepts].astype(np.int64)
    counts = name_offsets[stars.concepts + 1].astype(np.int64) - begins
    draw = below(derive(keys[stars.views], "synonym", stars.slots), counts)
    return np.where(counts > 0, begins + draw, -1)
