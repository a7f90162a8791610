"""Mentions one by one, and nodes that refer to tables of names or concepts."""

import numpy as np
import pytest
import torch

from bali_ds.data.loader import Loader
from bali_ds.data.settings import StreamSettings
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.shards.shard_set import ShardSet
from tests.packs import rows_of

CLS, SEP, MASK = 2, 3, 4


@pytest.fixture(scope="module")
def built(sample):
    return ShardSet.open(sample.shards), KnowledgeGraph.open(sample.graph), str(sample.encoder)


def batch_of(built, **changes):
    shards, graph, tokenizer = built
    settings = StreamSettings(seed=3, tokenizer=tokenizer, token_masking=0.0, mention_masking=0.0, **changes)
    return next(Loader(shards, graph, settings, global_batch=24)).micro_batches[0]


def test_each_mention_is_a_text_view_of_its_own(built):
    shards, _, _ = built
    batch = batch_of(built, each_mention=True)
    mentions = [shards.arrays(row)[1] for row in batch.sample_rows.tolist()]
    assert len(batch.text_views) == sum(len(each) for each in mentions) > batch.num_views
    concepts = batch.concept_ids[batch.text_views].tolist()
    lengths = np.bincount(batch.mention_views.numpy(), minlength=len(concepts)).tolist()
    expected = []
    for each in mentions:
        for concept in dict.fromkeys(each[:, 2].tolist()):
            expected += [(concept, end - start) for start, end, other in each.tolist() if other == concept]
    assert list(zip(concepts, lengths, strict=True)) == expected


def test_names_as_rows_of_a_table_name_the_same_names(built):
    shards, _, _ = built
    spelled, rows = (batch_of(built, name_masking=0.5, name_rows=each) for each in (False, True))
    assert rows_of(rows.names) == []
    names = [row[1:-1] for row in rows_of(spelled.names)]
    tokens, offsets = shards.names
    count = len(offsets) - 1
    for place, row in zip(spelled.node_names.tolist(), rows.node_names.tolist(), strict=True):
        expected = [MASK] * (row - count) if row > count else tokens[offsets[row] : offsets[row + 1]].tolist()
        assert names[place] == expected


def test_concepts_as_rows_of_a_table_are_those_of_the_names(built):
    _, graph, _ = built
    names, concepts = (
        batch_of(built, name_masking=0.5, **each) for each in ({"name_rows": True}, {"concept_rows": True})
    )
    assert rows_of(concepts.names) == []
    assert torch.equal(names.edge_index, concepts.edge_index)
    hidden = names.node_names > graph.num_names
    expected = np.searchsorted(graph.name_offsets, names.node_names.numpy(), side="right") - 1
    expected[hidden.numpy()] = graph.num_concepts
    assert concepts.node_names.tolist() == expected.tolist()
    assert 0 < int(hidden.sum()) < len(hidden)
    shown = ~hidden[concepts.targets]
    assert torch.equal(concepts.node_names[concepts.targets][shown], concepts.concept_ids[shown])
