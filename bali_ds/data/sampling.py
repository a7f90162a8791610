"""What is drawn for samples, whatever batch they come into: masks, neighbors, names, pairs of names, facts as text."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bali_ds.data.ego_graphs import NO_STARS, ConceptViews, Stars, draw_names, draw_stars, mention_tokens
from bali_ds.data.length_buckets import NO_TEXTS, Texts
from bali_ds.data.linearized import (
    NO_STRINGS,
    Strings,
    facts_of,
    linearize,
    name_strings,
    relation_strings,
)
from bali_ds.data.masking import Vocabulary, mask_names, mask_passages
from bali_ds.data.mixture import Mixture
from bali_ds.data.objective_inputs import NO_SYNONYMS, Synonyms, draw_named_mentions, draw_synonyms, hold_out
from bali_ds.data.ragged import Ints
from bali_ds.data.reader import Samples
from bali_ds.data.settings import StreamSettings
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.randomness import Keys, derive


class Drawn(NamedTuple):
    """Samples with all that is drawn for them alone; positions count through all their tokens, nodes and views.

    Attributes:
        samples: as stored, and marked.
        views: their distinct concepts.
        passages: their masked tokens.
        mention_tokens: int64 [P], positions of tokens of mentions.
        mention_views: int64 [P], the text view of each, ascending.
        text_views: int64, the view of each text view, ascending.
        stars: the drawn neighborhoods.
        names: int64 [N], the drawn name of each node.
        hidden: bool [N], whether that name is masked.
        neighborhoods: the masked tokens of each view's linearized neighborhood; none where views are stars.
        held: bool [F], facts of the stars that are no messages.
        synonyms: pairs of names.
        triples: the facts of each sample as text.
    """

    samples: Samples
    views: ConceptViews
    passages: Texts
    mention_tokens: Ints
    mention_views: Ints
    text_views: Ints
    stars: Stars
    names: Ints
    hidden: NDArray[np.bool_]
    neighborhoods: Texts
    held: NDArray[np.bool_]
    synonyms: Synonyms
    triples: Strings


@dataclass(frozen=True)
class Drawing:
    """Draws from one shard set, its graph and its settings."""

    shards: Mixture
    graph: KnowledgeGraph
    settings: StreamSettings
    vocabulary: Vocabulary
    relations: Strings

    @classmethod
    def of(cls, shards: Mixture, graph: KnowledgeGraph, settings: StreamSettings, vocabulary: Vocabulary) -> "Drawing":
        """Return what draws, with the names of relations in tokens where facts become text."""
        verbal = settings.graph_view == "linearized" or settings.triples
        relations = relation_strings(graph, settings.tokenizer) if verbal else NO_STRINGS
        return cls(shards, graph, settings, vocabulary, relations)

    def draw(self, samples: Samples, views: ConceptViews, visits: Keys) -> Drawn:
        """Return the draws of samples.

        Args:
            samples: as stored, and marked.
            views: their distinct concepts.
            visits: uint64 [n], the key of each sample's visit, from which all of its draws follow.
        """
        settings = self.settings
        mentions = mention_tokens(samples, views, each=settings.each_mention)
        mentioned = np.zeros(samples.tokens.size, bool)
        mentioned[mentions[0]] = True
        masked = mask_passages(samples.tokens, samples.lengths, mentioned, visits, settings, self.vocabulary)
        passages = Texts(samples.tokens, samples.lengths, *masked)
        seen = slice(None if settings.with_graph else 0)
        concepts, counts = views.concepts[seen], views.edge_counts[seen]
        keys = derive(visits[views.samples[seen]], concepts)
        stars = draw_stars(
            concepts, keys, samples.edges, views.edge_begins[seen], counts, settings.fan_out + settings.hold_out,
            self.graph.num_relations,
        )  # fmt: skip
        hidden = np.zeros(stars.concepts.size, bool)
        hidden[stars.targets] = mask_names(keys, counts, settings)
        names = draw_names(stars, keys, self.graph.name_offsets)
        neighborhoods = NO_TEXTS
        if settings.graph_view == "linearized":
            neighborhoods = self._linearized(stars, names, hidden, derive(keys, "linearised"))
            stars, names, hidden = NO_STARS, names[:0], hidden[:0]
        held = hold_out(stars, keys) if settings.hold_out else np.zeros(stars.edge_relations.size // 2, bool)
        synonyms = self._synonyms(samples, views, derive(visits[views.samples], views.concepts))
        triples = NO_STRINGS
        if settings.triples:
            triples = self._triples(stars, views.samples[seen], samples.rows.size)
        return Drawn(samples, views, passages, *mentions, stars, names, hidden, neighborhoods, held, synonyms, triples)

    def _synonyms(self, samples: Samples, views: ConceptViews, keys: Keys) -> Synonyms:
        """Return the pairs of names that the settings ask for."""
        offsets = self.graph.name_offsets
        if self.settings.synonyms == "names":
            return draw_synonyms(views.concepts, keys, offsets)
        if self.settings.synonyms == "mentions":
            return draw_named_mentions(samples, views, keys, offsets, self.shards.index["max_name_tokens"])
        return NO_SYNONYMS

    def _triples(self, stars: Stars, owners: Ints, count: int) -> Strings:
        """Return the facts of each sample as text, every concept by its preferred name."""
        begins, ends = (self.graph.name_offsets[stars.concepts + end].astype(np.int64) for end in (0, 1))
        preferred = np.where(begins < ends, begins, -1)
        nodes = name_strings(preferred, np.zeros(preferred.size, bool), self.shards.names, self.vocabulary.mask_id)
        facts = facts_of(stars, self.graph.num_relations, owners)
        return linearize(facts, nodes, self.relations, None, count, self.settings.graph_tokens, self.vocabulary)

    def _linearized(self, stars: Stars, names: Ints, hidden: NDArray[np.bool_], keys: Keys) -> Texts:
        """Return the masked neighborhoods of all views as text."""
        facts = facts_of(stars, self.graph.num_relations, np.arange(stars.targets.size))
        nodes = name_strings(names, hidden, self.shards.names, self.vocabulary.mask_id)
        count, limit = stars.targets.size, self.settings.graph_tokens
        texts = linearize(facts, nodes, self.relations, stars.targets, count, limit, self.vocabulary)
        settings = replace(self.settings, token_masking=self.settings.graph_masking)
        nowhere = np.zeros(texts.tokens.size, bool)
        return Texts(*texts, *mask_passages(*texts, nowhere, keys, settings, self.vocabulary))
