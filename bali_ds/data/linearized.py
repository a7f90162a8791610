"""Facts as text: token sequences that name concepts and say how they are related."""

from typing import NamedTuple

import numpy as np

from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.data.ego_graphs import EgoGraphs
from bali_ds.data.sequences import Ints, TokenSequences, Vocabulary, ranges, starts, within
from bali_ds.graph.knowledge_graph import KnowledgeGraph

LONGEST_RELATION = 16


class FactTexts(NamedTuple):
    """F facts between nodes, each in the direction in which the graph states it.

    Attributes:
        heads, relations, tails: int64 [F]: node, relation id below R, node.
        groups: int64 [F], ascending, the sequence that each fact is part of.
    """

    heads: Ints
    relations: Ints
    tails: Ints
    groups: Ints


def relation_sequences(graph: KnowledgeGraph, tokenizer: str) -> TokenSequences:
    """Return the tokens of every relation's name, its underscores read as spaces, cut to LONGEST_RELATION.

    Raises:
        InputError: the tokenizer cannot be loaded.
    """
    names = [graph.relation_name(relation).replace("_", " ") for relation in range(graph.num_relations)]
    rows = [row[:LONGEST_RELATION] for row in Tokenizer.load(tokenizer).encode_ids(names)]
    lengths = np.array([len(row) for row in rows], np.int64)
    return TokenSequences(np.array([token for row in rows for token in row], np.int64), lengths)


def facts_of(ego_graphs: EgoGraphs, num_relations: int, groups_of_views: Ints) -> FactTexts:
    """Return the sampled facts of ego graphs in their order.

    Args:
        ego_graphs: with their messages.
        num_relations: R; relation r + R read from a concept is fact r read from its neighbor.
        groups_of_views: int64 [V], ascending, the sequence that each ego graph's facts are part of.
    """
    count = ego_graphs.num_facts
    neighbors, centers = ego_graphs.edge_index[:, :count]
    relations = ego_graphs.edge_relations[:count]
    inverse = relations >= num_relations
    return FactTexts(
        np.where(inverse, neighbors, centers),
        relations % num_relations,
        np.where(inverse, centers, neighbors),
        groups_of_views[ego_graphs.views[neighbors]],
    )


def linearize(
    facts: FactTexts,
    names: TokenSequences,
    relations: TokenSequences,
    titles: Ints | None,
    count: int,
    limit: int,
    vocabulary: Vocabulary,
) -> TokenSequences:
    """Return `[CLS] title [SEP] head relation tail [SEP] head relation tail [SEP] ...` for each group of facts.

    Facts are never cut: where one would exceed the limit, it and all later facts of its group are dropped. Without
    titles the sequence is `[CLS] head relation tail [SEP] ... [SEP]`, so that a decoder can predict its end.

    Args:
        facts: in groups.
        names: of the nodes.
        relations: names of the relation ids below R.
        titles: int64 [count], the node that each sequence is about; None for sequences without a title.
        count: number of groups; a group may have no facts.
        limit: most tokens of a sequence; the title is never cut.
        vocabulary: of the shard set.

    Returns:
        `count` sequences.
    """
    pool = np.concatenate([names.tokens, relations.tokens, [vocabulary.cls_id, vocabulary.sep_id]]).astype(np.int64)
    name_begins, relation_begins = starts(names.lengths), starts(relations.lengths) + names.tokens.size
    cls_at, sep_at = pool.size - 2, pool.size - 1

    openings = np.full(count, 2) if titles is None else names.lengths[titles] + 2
    sizes = names.lengths[facts.heads] + relations.lengths[facts.relations] + names.lengths[facts.tails] + 1
    per_group = np.bincount(facts.groups, minlength=count)
    before = np.cumsum(sizes) - np.repeat(np.append(0, np.cumsum(sizes))[starts(per_group)], per_group)
    kept = np.flatnonzero(before + openings[facts.groups] <= limit)

    # Four pieces for every fact, and for every group four more: [CLS], title, [SEP], and the [SEP] at its end.
    facts_kept = np.bincount(facts.groups[kept], minlength=count)
    first = starts(4 + 4 * facts_kept)
    begins, lengths = np.full(4 * (count + kept.size), sep_at), np.ones(4 * (count + kept.size), np.int64)
    begins[first] = cls_at
    last = first + 3 + 4 * facts_kept
    if titles is None:
        lengths[first + 1] = lengths[first + 2] = 0
    else:
        begins[first + 1], lengths[first + 1] = name_begins[titles], names.lengths[titles]
        lengths[last] = 0
    at = first[facts.groups[kept]] + 3 + 4 * within(facts_kept)
    for place, ids, place_begins, place_lengths in (
        (0, facts.heads, name_begins, names.lengths),
        (1, facts.relations, relation_begins, relations.lengths),
        (2, facts.tails, name_begins, names.lengths),
    ):
        begins[at + place], lengths[at + place] = place_begins[ids[kept]], place_lengths[ids[kept]]
    totals = np.add.reduceat(lengths, first) if count else first
    return TokenSequences(pool[ranges(begins, lengths)], totals)
