"""Sampling for each passage alone, whatever its batch: masks, neighbors, names and linearized neighborhoods."""

from dataclasses import replace

import numpy as np

from bali_ds.data.batch_part import SampledInputs, SampleSource
from bali_ds.data.ego_graphs import (
    NO_EGO_GRAPHS,
    ConceptViews,
    EgoGraphs,
    mention_tokens,
    sample_ego_graphs,
    sample_names,
)
from bali_ds.data.linearized import facts_of, linearize, relation_sequences
from bali_ds.data.masking import mask_names, mask_passages
from bali_ds.data.mixture import Mixture
from bali_ds.data.name_codes import name_codes, name_tokens
from bali_ds.data.reader import Samples
from bali_ds.data.sequences import NO_MASKED_SEQUENCES, NO_SEQUENCES, Flags, Ints, MaskedSequences, Vocabulary
from bali_ds.data.settings import StreamSettings
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.randomness import Keys, derive
from bali_ds.shards.neighbor_settings import NeighborSettings


def open_source(shards: Mixture, graph: KnowledgeGraph, settings: StreamSettings) -> SampleSource:
    """Return the source of samples, with the tokens of relation names where facts are written as text.

    Raises:
        InputError: the tokenizer cannot be loaded.
    """
    writes_facts = settings.graph_view == "linearized" or any(part.writes_facts for part in settings.parts)
    return SampleSource(
        shards,
        graph,
        Vocabulary.from_index(shards.index["tokenizer"], settings.markers or ()),
        relation_sequences(graph, settings.tokenizer) if writes_facts else NO_SEQUENCES,
        settings.graph_tokens,
        settings.fan_out,
        NeighborSettings.of_index(shards.index).sampler(graph),
        tuple(settings.prompt),
    )


def sample_inputs(
    samples: Samples, views: ConceptViews, keys: Keys, source: SampleSource, settings: StreamSettings
) -> SampledInputs:
    """Return samples with masks, sampled neighborhoods and names.

    Args:
        samples: as stored, with entity markers and a prompt where the settings ask for them.
        views: their distinct concepts.
        keys: uint64 [n], the key of each sample, from which everything random about it follows.
        source: their shards and graph.
        settings: what to sample.
    """
    mentions = mention_tokens(samples, views, each=settings.each_mention)
    mentioned = np.zeros(samples.tokens.size, bool)
    mentioned[mentions[0]] = True
    masked = mask_passages(samples.tokens, samples.lengths, mentioned, keys, settings, source.vocabulary)
    passages = MaskedSequences(samples.tokens, samples.lengths, *masked)
    view_keys = derive(keys[views.samples], views.concept_ids)
    with_graph = slice(None if settings.with_graph else 0)
    graph_keys, counts = view_keys[with_graph], views.edge_counts[with_graph]
    ego_graphs = sample_ego_graphs(
        views.concept_ids[with_graph],
        graph_keys,
        samples.edges,
        views.edge_begins[with_graph],
        counts,
        settings.fan_out + sum(part.extra_neighbors for part in settings.parts),
        source.graph.num_relations,
    )
    hidden = np.zeros(ego_graphs.concept_ids.size, bool)
    hidden[ego_graphs.targets] = mask_names(graph_keys, counts, settings)
    names = sample_names(ego_graphs, graph_keys, source.graph.name_offsets)
    neighborhoods = NO_MASKED_SEQUENCES
    if settings.graph_view == "linearized":
        neighborhoods = _linearized(ego_graphs, names, hidden, derive(graph_keys, "linearised"), source, settings)
        ego_graphs, names, hidden = NO_EGO_GRAPHS, names[:0], hidden[:0]
    return SampledInputs(
        source, samples, views, view_keys, passages, *mentions, ego_graphs, names, hidden, neighborhoods
    )


def _linearized(
    ego_graphs: EgoGraphs, names: Ints, hidden: Flags, keys: Keys, source: SampleSource, settings: StreamSettings
) -> MaskedSequences:
    """Return the masked neighborhoods of all views as text."""
    count, vocabulary = ego_graphs.targets.size, source.vocabulary
    facts = facts_of(ego_graphs, source.graph.num_relations, np.arange(count))
    table = source.shards.names
    nodes = name_tokens(name_codes(names, hidden, table), table, vocabulary.mask_id)
    texts = linearize(facts, nodes, source.relation_names, ego_graphs.targets, count, source.graph_tokens, vocabulary)
    settings = replace(settings, token_masking=settings.graph_masking, prompt=())
    no_mentions = np.zeros(texts.tokens.size, bool)
    return MaskedSequences(*texts, *mask_passages(*texts, no_mentions, keys, settings, vocabulary))
