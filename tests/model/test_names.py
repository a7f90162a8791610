"""Cached name vectors against names encoded one by one, and embeddings in the place of names."""

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from bali_ds.data.loader import Loader
from bali_ds.model.build_model import build_aligner
from bali_ds.model.name_table import NameTable
from bali_ds.model.text_encoder import TextEncoder
from bali_ds.objectives.registry import stream_settings
from bali_ds.planning.run_data import RunData
from bali_ds.shards.shard_set import Names
from tests.model.variants import variant

CLS, SEP, MASK = 2, 3, 4


@pytest.fixture
def text():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=20,
        max_position_embeddings=16,
    )  # fmt: skip
    model = BertForMaskedLM(config)
    return TextEncoder(model.bert, model.cls).train()


@pytest.fixture
def table():
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 6, 700)
    tokens = generator.integers(5, 60, lengths.sum()).astype(np.uint16)
    names = Names(tokens, np.concatenate([[0], np.cumsum(lengths)]))
    return NameTable(names, 12, refresh_every=3, special=(CLS, SEP, MASK), longest=6).train()


def expected(text, inner):
    text.eval()
    with torch.no_grad():
        states = text.encoder(input_ids=torch.tensor([[CLS, *inner, SEP]])).last_hidden_state[0, 1:-1]
    text.train()
    return states.mean(dim=0)


def test_every_row_is_the_vector_of_its_name_or_masks(text, table):
    table.keep_fresh(text)
    assert text.training
    for name in range(0, 700, 50):
        inner = table.names.tokens[table.names.offsets[name] : table.names.offsets[name + 1]].tolist()
        torch.testing.assert_close(table.vectors[name], expected(text, inner), atol=1e-5, rtol=1e-4)
    for masks in range(1, 7):
        torch.testing.assert_close(table.vectors[700 + masks], expected(text, [MASK] * masks), atol=1e-5, rtol=1e-4)


def test_it_is_made_again_every_so_many_steps_and_not_for_evaluation(text, table):
    table.keep_fresh(text)
    made, before = [], table.vectors.clone()
    for _ in range(7):
        text.encoder.embeddings.word_embeddings.weight.data += 0.1 * torch.randn(60, 12)
        table.eval().keep_fresh(text)
        assert torch.equal(table.vectors, before)
        table.train().keep_fresh(text)
        made.append(not torch.equal(table.vectors, before))
        before = table.vectors.clone()
    assert made == [False, False, True, False, False, True, False]


def test_its_age_is_part_of_a_checkpoint(text, table):
    table.keep_fresh(text)
    table.keep_fresh(text)
    other = NameTable(table.names, 12, refresh_every=3, special=table.special, longest=6)
    other.load_state_dict(table.state_dict())
    text.encoder.embeddings.word_embeddings.weight.data += 1
    other.keep_fresh(text)
    assert torch.equal(other.vectors, table.vectors)
    other.keep_fresh(text)
    assert not torch.equal(other.vectors, table.vectors)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_ranks_share_the_rows_and_make_equally_many_calls(table, world_size):
    shares = [list(table._packs(rank, world_size)) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    rows = np.concatenate([rows for share in shares for rows, _ in share])
    assert sorted(rows.tolist()) == list(range(707))


def test_learned_embeddings_take_the_place_of_names(sample, tmp_path):
    recipe = variant(sample, tmp_path, "learned")
    data = RunData.open(recipe)
    aligner = build_aligner(recipe, 2 * data.graph.num_relations, data.shards).eval()
    batch = next(Loader(data.shards, data.graph, stream_settings(recipe), global_batch=16)).micro_batches[0]
    encoded = []
    aligner.text.encoder.register_forward_hook(lambda *_: encoded.append(1))
    views = aligner.encode(batch)
    assert len(encoded) == 1
    table = aligner.graph.concepts.weight.detach()
    assert table.shape == (data.graph.num_concepts + 1, aligner.text.width)
    assert table.std().item() == pytest.approx(0.02, rel=0.02)
    own = batch.node_names[batch.targets]
    hidden = own == data.graph.num_concepts
    assert torch.equal(own[~hidden], batch.concept_ids[~hidden])
    expected = aligner.graph(table[batch.node_names], batch.edge_index, batch.edge_relations)[batch.targets]
    torch.testing.assert_close(views.graph, expected)
