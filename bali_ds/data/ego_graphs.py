"""Concept views and their ego graphs: the distinct concepts of each passage, their mentions and sampled neighbors."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bali_ds.data.reader import Samples
from bali_ds.data.sequences import Ints, ranges, starts, within
from bali_ds.randomness import Keys, below, choose, derive

# Concept ids are int32: however wrong they are, keys of two samples so far apart never meet, nor overflow int64.
_ID_RANGE = 1 << 32


class ConceptViews(NamedTuple):
    """The distinct concepts of each sample, by sample, then by order of first mention.

    Attributes:
        samples: int64 [V], the sample of each view, counted within the batch.
        concept_ids: int64 [V], the concept of each view.
        of_mention: int64 [M], the view that each mention belongs to.
        edge_begins: int64 [V], the first stored edge of each view.
        edge_counts: int64 [V], stored edges of each view.
        misordered: int64, samples whose edges do not follow their concepts in order of first mention.
    """

    samples: Ints
    concept_ids: Ints
    of_mention: Ints
    edge_begins: Ints
    edge_counts: Ints
    misordered: Ints


def sample_concept_keys(samples: Ints, concept_ids: NDArray[np.int32]) -> Ints:
    """Return an int64 for each pair of a sample and a concept id, equal where both are, in the order of samples.

    Args:
        samples: int64 [n], numbers from 0 to 2**31 - 1.
        concept_ids: int32 [n], also ids that are not in the graph, so that samples need not be valid.
    """
    return samples * _ID_RANGE + concept_ids


def find_views(samples: Samples) -> ConceptViews:
    """Return the views of samples, valid or not: each concept of each passage once."""
    sample_of_mention = np.repeat(np.arange(samples.sample_rows.size), samples.mention_counts)
    mentions = sample_concept_keys(sample_of_mention, samples.mention_concept_ids)
    distinct, first, inverse = np.unique(mentions, return_index=True, return_inverse=True)
    by_first_mention = np.argsort(first)
    view_of_distinct = np.empty_like(by_first_mention)
    view_of_distinct[by_first_mention] = np.arange(by_first_mention.size)

    sample_of_edge = np.repeat(np.arange(samples.sample_rows.size), samples.edge_counts)
    edges = sample_concept_keys(sample_of_edge, samples.edges[:, 0])
    heads = np.flatnonzero(np.append(True, edges[1:] != edges[:-1])[: edges.size])
    sizes = np.diff(heads, append=edges.size)
    places = np.searchsorted(distinct, edges[heads])
    known = places < distinct.size
    known[known] = distinct[places[known]] == edges[heads[known]]
    views = view_of_distinct[places[known]]
    misordered = ~known
    misordered[known] = np.diff(views, prepend=-1) <= 0
    begins, counts = np.zeros(distinct.size, np.int64), np.zeros(distinct.size, np.int64)
    begins[views], counts[views] = heads[known], sizes[known]
    ordered = first[by_first_mention]
    return ConceptViews(
        samples=sample_of_mention[ordered],
        concept_ids=samples.mention_concept_ids[ordered].astype(np.int64),
        of_mention=view_of_distinct[inverse],
        edge_begins=begins,
        edge_counts=counts,
        misordered=sample_of_edge[heads[misordered]],
    )


def mention_tokens(samples: Samples, views: ConceptViews, *, each: bool = False) -> tuple[Ints, Ints, Ints]:
    """Return the flat token positions of mentions, int64 [P], the text view of each, and the view of each text view.

    A text view is all mentions of a view, and a token inside two of them counts once; with `each`, every mention is
    a text view of its own. Both are in the order of the views.
    """
    text_of_mention, view_of_text = views.of_mention, np.arange(views.concept_ids.size)
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


class EgoGraphs(NamedTuple):
    """V ego graphs with N nodes and E messages; the first node of each is its concept, the others are neighbors.

    The messages of all facts toward the concept come first, then those of the same facts, in the same order, from it.

    Attributes:
        concept_ids: int64 [N], the concept of each node.
        views: int64 [N], the ego graph of each node.
        slots: int64 [N], the node's place in its ego graph.
        targets: int64 [V], the node that is each ego graph's concept.
        edge_index: int64 [2, E], source and target of each message, both ways for each sampled fact.
        edge_relations: int64 [E], the relation as read from the target of the message.
    """

    concept_ids: Ints
    views: Ints
    slots: Ints
    targets: Ints
    edge_index: NDArray[np.int64]
    edge_relations: Ints

    @property
    def num_facts(self) -> int:
        """F, half the number of messages."""
        return self.edge_relations.size // 2


_EMPTY = np.empty(0, np.int64)
NO_EGO_GRAPHS = EgoGraphs(_EMPTY, _EMPTY, _EMPTY, _EMPTY, np.empty((2, 0), np.int64), _EMPTY)


def sample_ego_graphs(
    concept_ids: Ints,
    keys: Keys,
    edges: NDArray[np.int32],
    begins: Ints,
    counts: Ints,
    fan_out: int,
    num_relations: int,
) -> EgoGraphs:
    """Sample up to `fan_out` of the stored neighbors of each view, uniformly and without replacement.

    Args:
        concept_ids: int64 [V], the concept of each view.
        keys: uint64 [V], the key of each view.
        edges: int32 [all, 3]: concept id, relation id, neighbor id.
        begins: int64 [V], the first stored edge of each view in `edges`.
        counts: int64 [V], stored edges of each view.
        fan_out: neighbors to sample.
        num_relations: R, relations in one direction; relation r + R is the inverse of r.
    """
    chosen = choose(derive(keys, "neighbours"), counts, fan_out)
    neighbor_counts = np.minimum(counts, fan_out)
    sampled = edges[(begins[:, None] + chosen)[chosen >= 0]].astype(np.int64)
    sizes = 1 + neighbor_counts
    targets, slots = starts(sizes), within(sizes)
    nodes = np.empty(int(sizes.sum()), np.int64)
    nodes[targets] = concept_ids
    neighbors = ranges(targets + 1, neighbor_counts)
    nodes[neighbors] = sampled[:, 2]
    centers, relations = np.repeat(targets, neighbor_counts), sampled[:, 1]
    return EgoGraphs(
        nodes,
        np.repeat(np.arange(concept_ids.size), sizes),
        slots,
        targets,
        np.stack([np.concatenate([neighbors, centers]), np.concatenate([centers, neighbors])]),
        np.concatenate([relations, (relations + num_relations) % (2 * num_relations)]),
    )


def sample_names(ego_graphs: EgoGraphs, keys: Keys, name_offsets: NDArray[np.int64]) -> Ints:
    """Sample one of each node's names, uniformly; return the name ids, int64 [N], -1 for a concept without names."""
    begins = name_offsets[ego_graphs.concept_ids].astype(np.int64)
    counts = name_offsets[ego_graphs.concept_ids + 1].astype(np.int64) - begins
    sampled = below(derive(keys[ego_graphs.views], "synonym", ego_graphs.slots), counts)
    return np.where(counts > 0, begins + sampled, -1)
