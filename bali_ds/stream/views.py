"""Views: the distinct concepts of each passage, and where its text and its stored edges speak of them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bali_ds.stream.ragged import Ints, ranges, starts
from bali_ds.stream.reader import Samples

# Concept ids are int32: however wrong they are, keys of two samples so far apart never meet, nor overflow int64.
_ID_RANGE = 1 << 32


class Views(NamedTuple):
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


def find_views(samples: Samples) -> Views:
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
    return Views(
        sample_of_mention[ordered],
        samples.mentions[ordered, 2].astype(np.int64),
        view_of_distinct[inverse],
        begins,
        counts,
        sample_of_edge[heads[astray]],
    )


def mention_tokens(samples: Samples, views: Views, *, each: bool = False) -> tuple[Ints, Ints, Ints]:
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
