"""Linearized neighborhoods against sequences written by hand, and against a slow plain reading of the graph."""

import numpy as np
import pytest

from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.data.batch import as_tensors
from bali_ds.data.collator import Collator
from bali_ds.data.linearized import FactTexts, linearize
from bali_ds.data.name_codes import name_codes, name_tokens
from bali_ds.data.sampler import SampleIndices
from bali_ds.data.sequences import TokenSequences, Vocabulary
from bali_ds.data.settings import StreamSettings
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.shards.shard_set import Names, ShardSet
from tests.data.oracle import expected_sample
from tests.packs import rows_of

CLS, SEP, MASK = 2, 3, 4
VOCABULARY = Vocabulary(CLS, SEP, 0, MASK, np.arange(100) < 5, np.arange(5, 100))
# nodes 0 to 3 are called 10, 20 21, 30 and 40 41 42; relations 0 and 1 are called 70 and 80 81
NAMES = TokenSequences(np.array([10, 20, 21, 30, 40, 41, 42]), np.array([1, 2, 1, 3]))
RELATIONS = TokenSequences(np.array([70, 80, 81]), np.array([1, 2]))
FACTS = FactTexts(*(np.array(column) for column in ([0, 2, 3], [0, 1, 1], [1, 0, 3], [0, 0, 2])))


def sequences(strings):
    return [part.tolist() for part in np.split(strings.tokens, np.cumsum(strings.lengths)[:-1])]


@pytest.mark.parametrize(
    ("limit", "first", "last"),
    [
        (
            40,
            [CLS, 10, SEP, 10, 70, 20, 21, SEP, 30, 80, 81, 10, SEP],
            [40, 41, 42, SEP, 40, 41, 42, 80, 81, 40, 41, 42],
        ),
        (13, [CLS, 10, SEP, 10, 70, 20, 21, SEP, 30, 80, 81, 10, SEP], [40, 41, 42]),
        (12, [CLS, 10, SEP, 10, 70, 20, 21, SEP], [40, 41, 42]),
        (7, [CLS, 10, SEP], [40, 41, 42]),
    ],
)
def test_titles_and_whole_facts_up_to_the_limit(limit, first, last):
    found = linearize(FACTS, NAMES, RELATIONS, np.array([0, 1, 3]), 3, limit, VOCABULARY)
    assert sequences(found) == [first, [CLS, 20, 21, SEP], [CLS, *last, SEP]]


def test_without_titles_the_end_is_marked():
    found = linearize(FACTS, NAMES, RELATIONS, None, 3, 40, VOCABULARY)
    assert sequences(found) == [
        [CLS, 10, 70, 20, 21, SEP, 30, 80, 81, 10, SEP, SEP],
        [CLS, SEP],
        [CLS, 40, 41, 42, 80, 81, 40, 41, 42, SEP, SEP],
    ]
    nothing = FactTexts(*[np.empty(0, np.int64)] * 4)
    assert linearize(nothing, NAMES, RELATIONS, None, 0, 40, VOCABULARY).tokens.size == 0


def test_names_hidden_missing_or_empty_become_masks():
    table = Names(np.array([11, 12, 13]), np.array([0, 2, 2, 3]))
    codes = name_codes(np.array([0, 0, -1, 1, 2]), np.array([False, True, False, True, False]), table)
    found = name_tokens(codes, table, MASK)
    assert sequences(found) == [[11, 12], [MASK, MASK], [MASK], [MASK], [13]]


@pytest.mark.parametrize("masking", [0.0, 0.5])
def test_a_batch_reads_as_the_graph_says(sample, masking):
    shards, graph, tokenizer = ShardSet.open(sample.shards), KnowledgeGraph.open(sample.graph), str(sample.encoder)
    settings = StreamSettings(
        seed=3, name_masking=0.5, graph_view="linearized", tokenizer=tokenizer, graph_masking=masking, graph_tokens=60
    )
    rows = np.arange(20)
    [(arrays, _)] = Collator.of(shards, graph, settings).collate(SampleIndices(rows, np.ones_like(rows)))
    batch = as_tensors(arrays)
    assert rows_of(batch.names) == []
    assert batch.node_names.shape == batch.targets.shape == (0,)
    batch.neighborhoods.input_ids[batch.graph_labeled_tokens] = batch.graph_labels
    ids = rows_of(batch.neighborhoods)
    views = [view for row in rows for view in expected_sample(shards, graph, settings, int(row), 1)["views"]]
    relation_tokens = Tokenizer.load(tokenizer).encode_ids([name.replace("_", " ") for name in graph.relations])
    assert len(views) == batch.num_views > 20
    for view, row in zip(views, batch.neighborhood_rows.tolist(), strict=True):
        expected, full = [CLS, *view["names"][0], SEP], False
        for relation, name in zip(view["to_concept"], view["names"][1:], strict=True):
            pair = (view["names"][0], name) if relation < graph.num_relations else (name, view["names"][0])
            fact = [*pair[0], *relation_tokens[relation % graph.num_relations], *pair[1], SEP]
            full = full or len(expected) + len(fact) > 60
            expected += [] if full else fact
        assert ids[row] == expected
    labeled = len(batch.graph_labels) / sum(len(each) for each in ids)
    assert (labeled > 0.25) == (masking > 0)
    assert not set(batch.graph_labels.tolist()) & {CLS, SEP, MASK}


def test_without_a_need_for_graph_views_there_are_none(sample):
    shards, graph = ShardSet.open(sample.shards), KnowledgeGraph.open(sample.graph)
    indices = SampleIndices(np.arange(20, 40), np.zeros(20, np.int64))
    [(arrays, _)] = Collator.of(shards, graph, StreamSettings(with_graph=False)).collate(indices)
    assert rows_of(arrays.names) == rows_of(arrays.neighborhoods) == []
    assert arrays.concept_ids.size > 20
    assert arrays.edge_relations.size == arrays.node_names.size == arrays.targets.size == 0
