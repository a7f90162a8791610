"""Batch parts of objectives against a slow plain reading: held-out facts, synonyms, passages beside their facts."""

import numpy as np
import pytest

from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.data.loader import Loader
from bali_ds.data.settings import StreamSettings
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.objectives.dual_batch import PassagesWithFactsPart
from bali_ds.objectives.links import HeldOutFactsPart
from bali_ds.objectives.synonym_alignment import SynonymPart, sample_name_pairs
from bali_ds.randomness import derive
from bali_ds.shards.shard_set import ShardSet
from tests.packs import rows_of

CLS, SEP = 2, 3


@pytest.fixture(scope="module")
def built(sample):
    return ShardSet.open(sample.shards), KnowledgeGraph.open(sample.graph), str(sample.encoder)


def batch_of(built, *parts):
    shards, graph, tokenizer = built
    settings = StreamSettings(seed=3, tokenizer=tokenizer, token_masking=0.0, mention_masking=0.0, parts=parts)
    return next(Loader(shards, graph, settings, global_batch=24)).micro_batches[0]


def padded_rows(sequences):
    rows = list(zip(sequences.input_ids.tolist(), sequences.lengths.tolist(), strict=True))
    assert not any(any(ids[length:]) for ids, length in rows)
    return [ids[:length] for ids, length in rows]


def test_one_of_several_facts_of_an_ego_graph_is_held_out_and_passes_no_message(built):
    _, graph, _ = built
    batch = batch_of(built, HeldOutFactsPart())
    messages = set(zip(*batch.edge_index.tolist(), batch.edge_relations.tolist(), strict=True))
    held = batch.parts["link_prediction"].facts.T.tolist()
    assert len(held) > 20
    assert len({head for head, *_ in held}) == len(held)
    concept_of = dict(zip(batch.targets.tolist(), batch.concept_ids.tolist(), strict=True))
    for head, relation, tail, concept in held:
        assert not {message for message in messages if tail in message[:2]}
        row = slice(*graph.edge_offsets[concept_of[head] : concept_of[head] + 2])
        known = list(zip(graph.edge_relations[row].tolist(), graph.edge_targets[row].tolist(), strict=True))
        assert (relation, concept) in known
    sources = [source for source, target, _ in messages if target in concept_of]
    assert max(sources.count(source) for source in sources) == 1
    per_concept = [sum(target == node for _, target, _ in messages) for node in concept_of]
    assert max(per_concept) == 3
    assert batch_of(built).parts == {}


def test_synonyms_are_two_different_names_of_the_concept(built):
    shards, graph, _ = built
    batch = batch_of(built, SynonymPart())
    own = batch.parts["synonym_alignment"]
    names = rows_of(batch.names)
    tokens, offsets = shards.names
    assert own.rows.shape[1] == len(own.concept_ids) > 10
    for first, second, concept in zip(*own.rows.tolist(), own.concept_ids.tolist(), strict=True):
        ids = range(*graph.name_offsets[concept : concept + 2].tolist())
        known = [[CLS, *tokens[offsets[name] : offsets[name + 1]].tolist(), SEP] for name in ids]
        assert names[first] in known
        assert names[second] in known
    several = [concept for concept in batch.concept_ids.tolist() if np.diff(graph.name_offsets)[concept] > 1]
    assert own.concept_ids.tolist() == several


def test_mentions_out_of_context_stand_beside_a_name_of_the_concept(built):
    shards, graph, _ = built
    batch = batch_of(built, SynonymPart("mentions"))
    own = batch.parts["synonym_alignment"]
    names = rows_of(batch.names)
    table, offsets = shards.names
    assert own.concept_ids.tolist() == batch.concept_ids.tolist()
    spelled = {}
    for place, row in enumerate(batch.sample_rows.tolist()):
        tokens, mentions, _ = shards.arrays(row)
        for first, last, concept in mentions.tolist():
            spelled.setdefault((place, concept), []).append([CLS, *tokens[first : min(last, first + 32)].tolist(), SEP])
    pairs = zip(*own.rows.tolist(), own.concept_ids.tolist(), spelled.items(), strict=True)
    for name, mention, concept, ((_, expected), words) in pairs:
        ids = range(*graph.name_offsets[concept : concept + 2].tolist())
        assert concept == expected
        assert names[name] in [[CLS, *table[offsets[each] : offsets[each + 1]].tolist(), SEP] for each in ids]
        assert names[mention] in words


def test_every_pair_of_synonyms_is_equally_likely():
    found = sample_name_pairs(np.zeros(6000, np.int64), derive(1, np.arange(6000)), np.array([0, 3]))
    assert not (found.first == found.second).any()
    counts = np.bincount(3 * found.first + found.second, minlength=9)[[1, 2, 3, 5, 6, 7]]
    assert counts.sum() == 6000
    assert np.abs(counts - 1000).max() < 150


def test_passages_stand_beside_their_facts_and_nodes(built):
    shards, graph, tokenizer = built
    batch = batch_of(built, PassagesWithFactsPart())
    dual = batch.parts["dual"]
    relations = Tokenizer.load(tokenizer).encode_ids([name.replace("_", " ") for name in graph.relations])
    flat = batch.passages.input_ids
    tokens, offsets = shards.names
    names = [tokens[offsets[first] : offsets[first + 1]].tolist() for first in graph.name_offsets[:-1]]
    messages = list(zip(*batch.edge_index.tolist(), batch.edge_relations.tolist(), strict=True))
    targets, node = batch.targets.tolist(), 0
    for place, row in enumerate(batch.sample_rows.tolist()):
        passage = shards.arrays(row)[0].tolist()
        assert padded_rows(dual.originals)[place] == passage
        assert flat[dual.original_positions[place][: len(passage)]].tolist() == passage
        own = [each for each in dual.passage_nodes[place].tolist() if each >= 0]
        assert own == list(range(node, node + len(own)))
        node += len(own)
        written = padded_rows(dual.facts)[place]
        facts = [(v, r) for u, v, r in messages if v in own and v in targets]
        assert (written[0], written[-1]) == (CLS, SEP)
        assert written.count(SEP) == len(facts) + 1 or len(written) > 128 - 64
        if facts:
            concept = int(batch.concept_ids[targets.index(facts[0][0])])
            relation = facts[0][1]
            spelled = relations[relation % graph.num_relations]
            first = written[1 : written.index(SEP)]
            if relation < graph.num_relations:
                assert first[: len(names[concept]) + len(spelled)] == names[concept] + spelled
            else:
                assert first[-len(names[concept]) - len(spelled) :] == spelled + names[concept]
    assert node == len(batch.node_names)
