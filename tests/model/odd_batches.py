"""Batches that a loader gives now and then: a rank without mentions, an isolated concept, a hub."""

from dataclasses import replace

import torch

from bali_ds.data.batch import Batch, TokenBlock


def without_mentions(batch: Batch) -> Batch:
    """The same passages, as if none of them mentioned anything."""
    nothing = batch.concept_ids[:0]

    def dummies(blocks):
        return tuple(TokenBlock(block.input_ids[:1, :2], torch.full((1,), 2)) for block in blocks)

    count = len(batch.originals[0].lengths) if batch.originals else 0
    bare = tuple(TokenBlock(block.input_ids[:, :2], torch.full((count,), 2)) for block in batch.triples)
    return replace(
        batch,
        names=dummies(batch.names),
        mention_tokens=nothing,
        mention_views=nothing,
        text_views=nothing,
        concept_ids=nothing,
        node_names=nothing,
        edge_index=batch.edge_index[:, :0],
        edge_relations=nothing,
        targets=nothing,
        neighborhoods=dummies(batch.neighborhoods),
        neighborhood_rows=nothing,
        graph_labeled_tokens=nothing,
        graph_labels=nothing,
        held_out=batch.held_out[:, :0],
        synonyms=batch.synonyms[:, :0],
        synonym_ids=nothing,
        triples=bare,
        passage_nodes=torch.full((count, min(count, 1)), -1),
    )


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
