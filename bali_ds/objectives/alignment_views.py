"""Further views of the contrastive objective: mentions and names by themselves, and concepts drawn from the graph."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bali_ds.data.batch import Array, ArrayTree
from bali_ds.data.batch_part import BatchPart, BatchSlice, NamesToEncode, SampledInputs, SampleSource
from bali_ds.data.ego_graphs import EgoGraphs, sample_ego_graphs, sample_names
from bali_ds.data.sequences import Flags, Ints, TokenSequences, starts
from bali_ds.data.siblings import sample_siblings
from bali_ds.objectives.synonym_alignment import NO_PAIRS, SampledPairs, sample_named_mentions
from bali_ds.randomness import Keys, below, derive, uniform

# Half of the graph views of other concepts must come from the neighbors: their names are views themselves.
_HIDDEN = 0.5


@dataclass(frozen=True)
class AlignmentViews(ArrayTree[Array]):
    """Views beside text and graph views: A that the text encoder reads by themselves, O ego graphs with N nodes.

    Attributes:
        rows: int64 [A], rows in `Batch.names`.
        node_rows: int64 [N], the row in `Batch.names` of each node.
        edge_index: int64 [2, E], source and target node of each message.
        edge_relations: int64 [E].
        targets: int64 [O], the node that is each ego graph's concept.
        concept_ids: int64 [A + O], of the views that are read, then of the ego graphs.
    """

    rows: Array
    node_rows: Array
    edge_index: Array
    edge_relations: Array
    targets: Array
    concept_ids: Array


class OtherConcepts(NamedTuple):
    """O concepts drawn from the graph, as many for each view of a passage.

    Attributes:
        concept_ids: int64 [O].
        name_ids: int64 [O], one name of each.
        ego_graphs: their neighborhoods.
        node_names: int64 [N], the sampled name of each node.
        masks: int64 [N], how many masks stand for the name of a node; 0 where the name is shown.
    """

    concept_ids: Ints
    name_ids: Ints
    ego_graphs: EgoGraphs
    node_names: Ints
    masks: Ints


_NONE: Ints = np.empty(0, np.int64)
_NO_FACTS: Ints = np.empty((2, 0), np.int64)
_NO_OTHERS = OtherConcepts(_NONE, _NONE, EgoGraphs(_NONE, _NONE, _NONE, _NONE, _NO_FACTS, _NONE), _NONE, _NONE)


class SampledAlignmentViews(NamedTuple):
    """What is sampled for the views of several batches: a name and a mention of each concept, and other concepts."""

    pairs: SampledPairs
    others: OtherConcepts
    mask_id: int


@dataclass(frozen=True)
class AlignmentViewsPart(BatchPart):
    """Samples further views of each concept of a passage, concepts of the whole graph, and siblings.

    Attributes:
        mentions: add the words of one of the concept's mentions in the passage.
        concept_names: add one of the concept's names.
        others: concepts for each view of a passage. Each concept of the graph is equally likely.
        siblings: further concepts for each view, which share a neighbor with its own.
    """

    name = "contrastive"
    content = AlignmentViews
    encodes_names = True

    mentions: bool = False
    concept_names: bool = False
    others: int = 0
    siblings: int = 0

    def sample(self, inputs: SampledInputs) -> SampledAlignmentViews:
        """Return the further views of all views."""
        pairs = sample_named_mentions(inputs) if self.mentions or self.concept_names else NO_PAIRS
        others = sample_other_concepts(
            inputs.view_keys, inputs.views.concept_ids, inputs.source, others=self.others, siblings=self.siblings
        )
        return SampledAlignmentViews(pairs, others, inputs.source.vocabulary.mask_id)

    def names(self, sampled: SampledAlignmentViews, views: slice) -> NamesToEncode:
        """Return names and mentions of some views, and the names of other concepts and of their neighbors."""
        pairs, others, nodes = self._slices(sampled, views)
        masks = sampled.others.masks[nodes]
        own = sampled.pairs.first[pairs] if self.concept_names else sampled.pairs.first[:0]
        name_ids = [own, sampled.others.name_ids[others], sampled.others.node_names[nodes][masks == 0]]
        spelled = [sampled.pairs.mentions.part(pairs.start, pairs.stop)] if self.mentions else []
        lengths = np.unique(masks[masks > 0])
        hidden = TokenSequences(np.full(int(lengths.sum()), sampled.mask_id), lengths)
        return NamesToEncode(np.concatenate(name_ids), TokenSequences.join([*spelled, hidden]))

    def collate(self, sampled: SampledAlignmentViews, piece: BatchSlice) -> AlignmentViews[Ints]:
        """Return the further views of one batch."""
        pairs, others, nodes = self._slices(sampled, piece.views)
        ego_graphs, masks = sampled.others.ego_graphs, sampled.others.masks[nodes]
        hidden = masks > 0
        _, of_length = np.unique(masks[hidden], return_inverse=True)
        count, drawn, concept_ids = (
            pairs.stop - pairs.start,
            others.stop - others.start,
            sampled.pairs.concept_ids[pairs],
        )
        sizes = [count * self.concept_names, drawn, int((~hidden).sum()), count * self.mentions]
        own, other, shown, mentions, masked = np.split(piece.name_rows, np.cumsum(sizes))
        node_rows = np.empty(hidden.size, np.int64)
        node_rows[~hidden], node_rows[hidden] = shown, masked[of_length]
        facts = np.arange(nodes.start - others.start, nodes.stop - others.stop)
        messages = np.concatenate([facts, facts + ego_graphs.num_facts])
        drawn_ids = sampled.others.concept_ids[others]
        return AlignmentViews(
            rows=np.concatenate([own, other, mentions]),
            node_rows=node_rows,
            edge_index=ego_graphs.edge_index[:, messages] - nodes.start,
            edge_relations=ego_graphs.edge_relations[messages],
            targets=ego_graphs.targets[others] - nodes.start,
            concept_ids=np.concatenate([concept_ids[: own.size], drawn_ids, concept_ids[: mentions.size], drawn_ids]),
        )

    def _slices(self, sampled: SampledAlignmentViews, views: slice) -> tuple[slice, slice, slice]:
        """Return which pairs, other concepts and nodes belong to a range of views."""
        pairs = np.searchsorted(sampled.pairs.views, (views.start, views.stop))
        count = self.others + self.siblings
        first, last = views.start * count, views.stop * count
        nodes = np.searchsorted(sampled.others.ego_graphs.views, (first, last))
        return slice(*pairs.tolist()), slice(first, last), slice(*nodes.tolist())


def sample_other_concepts(
    view_keys: Keys, view_concepts: Ints, source: SampleSource, *, others: int, siblings: int
) -> OtherConcepts:
    """Draw concepts that have names, each with a name, a neighborhood and its names, by the keys alone.

    Args:
        view_keys: uint64 [V], the key of each view of a passage.
        view_concepts: int64 [V], its concept.
        source: the graph, and the settings of its neighborhoods.
        others: concepts of the graph for each view.
        siblings: siblings of its concept for each view, or concepts of the graph where it has none.
    """
    if not others + siblings:
        return _NO_OTHERS
    graph, table = source.graph, source.shards.names
    keys = derive(view_keys[:, None], "other concept", np.arange(others + siblings))
    concept_ids = _draw(keys, view_concepts, source, others).ravel()
    keys = keys.ravel()
    neighbors, relations = source.neighbors(concept_ids, source.fan_out, derive(keys, "facts"))
    stored = neighbors >= 0
    degrees = stored.sum(axis=1)
    edges = np.stack([np.repeat(concept_ids, degrees), relations[stored], neighbors[stored]], axis=1).astype(np.int32)
    ego_graphs = sample_ego_graphs(
        concept_ids, keys, edges, starts(degrees), degrees, source.fan_out, graph.num_relations
    )
    node_names = sample_names(ego_graphs, keys, graph.name_offsets)
    hidden: Flags = np.zeros(node_names.size, bool)
    hidden[ego_graphs.targets] = (uniform(derive(keys, "hidden")) < _HIDDEN) & (degrees >= 2)
    sizes = table.offsets[node_names + 1].astype(np.int64) - table.offsets[node_names].astype(np.int64)
    masks = np.where(hidden, np.maximum(np.where(node_names < 0, 1, sizes), 1), 0)
    begins = graph.name_offsets[concept_ids].astype(np.int64)
    counts = graph.name_offsets[concept_ids + 1].astype(np.int64) - begins
    name_ids = begins + below(derive(keys, "name"), counts)
    return OtherConcepts(concept_ids, name_ids, ego_graphs, node_names, masks)


def _draw(keys: Keys, view_concepts: Ints, source: SampleSource, others: int) -> Ints:
    """Return concepts of the graph in the first columns, siblings in the rest, int64 of the shape of the keys."""
    named = source.graph.named_concepts
    drawn = named[below(derive(keys, "concept"), np.full(keys.shape, named.size))]
    siblings = keys.shape[1] - others
    if siblings:
        found = sample_siblings(np.repeat(view_concepts, siblings), keys[:, others:].ravel(), source)
        drawn[:, others:] = np.where(found >= 0, found, drawn[:, others:].ravel()).reshape(-1, siblings)
    return drawn
