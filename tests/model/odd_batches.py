"""Batches that a loader yields rarely: a rank without mentions, an isolated concept, a hub."""

from dataclasses import replace

import torch

from bali_ds.data.batch import Batch, PaddedSequences
from bali_ds.objectives.dual_batch import PassagesWithFacts
from bali_ds.objectives.links import HeldOutFacts
from bali_ds.objectives.synonym_alignment import SynonymPairs
from tests.packs import pack_of


def without_mentions(batch: Batch) -> Batch:
    """The same passages, without their mentions."""
    nothing = batch.concept_ids[:0]

    def dummy(packed):
        return pack_of(*[packed.input_ids[:2].tolist()][: len(packed.lengths)])

    return replace(
        batch,
        names=dummy(batch.names),
        mention_tokens=nothing,
        mention_views=nothing,
        text_views=nothing,
        concept_ids=nothing,
        node_names=nothing,
        edge_index=batch.edge_index[:, :0],
        edge_relations=nothing,
        targets=nothing,
        neighborhoods=dummy(batch.neighborhoods),
        neighborhood_rows=nothing,
        graph_labeled_tokens=nothing,
        graph_labels=nothing,
        parts={name: part_without_mentions(part) for name, part in batch.parts.items()},
    )


def part_without_mentions(part):
    """The part of an objective in such a batch."""
    if isinstance(part, HeldOutFacts):
        return HeldOutFacts(part.facts[:, :0])
    if isinstance(part, SynonymPairs):
        return SynonymPairs(part.rows[:, :0], part.concept_ids[:0])
    if isinstance(part, PassagesWithFacts):
        count = len(part.originals.lengths)
        bare = PaddedSequences(part.facts.input_ids[:, :2], torch.full((count,), 2))
        return replace(part, facts=bare, passage_nodes=torch.full((count, min(count, 1)), -1))
    return part


def with_hub(batch: Batch, neighbors: int = 4000) -> Batch:
    """The first concept gets thousands of neighbors, the second loses all of its own."""
    hub, lonely = batch.targets[:2].tolist()
    count = len(batch.node_names)
    kept = (batch.edge_index != lonely).all(dim=0)
    new = torch.arange(count, count + neighbors)
    center = torch.full_like(new, hub)
    edges = [batch.edge_index[:, kept], torch.stack([new, center]), torch.stack([center, new])]
    relations = batch.edge_relations[:1].expand(2 * neighbors)
    return replace(
        batch,
        node_names=torch.cat([batch.node_names, batch.node_names[:1].expand(neighbors)]),
        edge_index=torch.cat(edges, dim=1),
        edge_relations=torch.cat([batch.edge_relations[kept], relations]),
    )
