"""The decoder of both directions: likelihoods written out, and 32 pairs learned by heart."""

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from bali_ds.config.objectives import DualConfig
from bali_ds.data.batch import PaddedSequences
from bali_ds.model.text_encoder import TextEncoder
from bali_ds.objectives.dual_batch import PassagesWithFacts
from bali_ds.objectives.dual_decoder import FACTS, PASSAGES, DualDecoder, loss_weights

CLS, SEP = 2, 3
PAIRS = 32
SETTINGS = DualConfig(weight=1.0, layers=1, duality=0.5, dropout=0.0)


@pytest.fixture
def parts():
    """A text encoder, a decoder, and pairs of random passages and facts with states and nodes of their own."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 64, "max_position_embeddings": 24}
    model = BertForMaskedLM(BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    text = TextEncoder(model.bert, model.cls)
    dual = DualDecoder(SETTINGS, text, 24)
    lengths = torch.randint(4, 11, (2, PAIRS))

    def block(length):
        ids = torch.randint(5, 60, (PAIRS, int(length.max())))
        ids[:, 0] = CLS
        ids[torch.arange(PAIRS), length - 1] = SEP
        ids[torch.arange(ids.shape[1]) >= length[:, None]] = 0
        return PaddedSequences(ids, length)

    passages = block(lengths[0])
    nodes = torch.arange(3 * PAIRS).view(PAIRS, 3)
    nodes[::4, 2] = -1
    batch = PassagesWithFacts(
        originals=passages,
        facts=block(lengths[1]),
        original_positions=torch.arange(passages.input_ids.numel()).view_as(passages.input_ids),
        passage_nodes=nodes,
    )
    return text, dual, batch, torch.randn(passages.input_ids.numel(), 64), torch.randn(3 * PAIRS, 64)


def test_sums_are_those_of_each_sequence_alone(parts):
    text, dual, batch, hidden, nodes = parts
    sums = dual(text, hidden, nodes, batch)
    totals = dict.fromkeys(("text_to_graph", "graph_to_text", "graph_alone", "text_alone"), 0.0)
    gap = 0.0
    for pair in range(PAIRS):
        alone = {}
        own = [row for row in batch.passage_nodes[pair].tolist() if row >= 0]
        size = int(batch.originals.lengths[pair])
        seen = {
            "text_to_graph": (batch.facts, hidden[batch.original_positions[pair, :size]], FACTS),
            "graph_to_text": (
                batch.originals,
                nodes[own],
                PASSAGES,
            ),
            "graph_alone": (batch.facts, hidden[:0], FACTS),
            "text_alone": (batch.originals, hidden[:0], PASSAGES),
        }
        for name, (block, given, language) in seen.items():
            ids = block.input_ids[pair, : block.lengths[pair]]
            embedded = text.encoder.embeddings.word_embeddings(ids[None])
            states = dual.decoder(embedded, given[None], torch.ones(1, len(given), dtype=torch.bool), language)
            likely = text.head(states[0]).log_softmax(-1)
            alone[name] = sum(float(likely[place, ids[place + 1]]) for place in range(len(ids) - 1))
            totals[name] -= alone[name]
        tokens = int(batch.facts.lengths[pair]) + size
        left, right = alone["text_alone"] + alone["text_to_graph"], alone["graph_alone"] + alone["graph_to_text"]
        gap += ((left - right) / tokens) ** 2
    for name, total in totals.items():
        assert sums[name][0].item() == pytest.approx(total, rel=1e-4)
    assert sums["duality"][0].item() == pytest.approx(gap, rel=1e-3)
    assert sums["text_to_graph"][1] == int((batch.facts.lengths - 1).sum())
    information = totals["graph_alone"] - totals["text_to_graph"]
    assert sums["information_text_to_graph"][0].item() == pytest.approx(information, rel=1e-3, abs=1e-2)
    assert sums.keys() == loss_weights(SETTINGS).keys()


def test_no_token_sees_those_after_it(parts):
    text, dual, batch, *_ = parts
    ids = batch.facts.input_ids[:2, :6]
    changed = ids.clone()
    changed[:, 4] = 7
    given, valid = torch.randn(2, 3, 64), torch.ones(2, 3, dtype=torch.bool)
    one, other = (dual._states(text, each, given, valid, FACTS) for each in (ids, changed))
    torch.testing.assert_close(one[:, :4], other[:, :4])
    assert not torch.allclose(one[:, 4:], other[:, 4:])


def test_it_learns_32_pairs_by_heart_in_both_directions(parts):
    text, dual, batch, hidden, nodes = parts
    optimizer = torch.optim.Adam([*text.parameters(), *dual.parameters()], lr=3e-3)
    for _ in range(200):
        sums = dual(text, hidden, nodes, batch)
        loss = sum(sums[name][0] / sums[name][1] for name in ("text_to_graph", "graph_to_text"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.03:
            break
    assert loss.item() < 0.05
    for block, seen, language in (
        (batch.facts, dual.seen_text(hidden, batch), FACTS),
        (batch.originals, dual.seen_graph(nodes, batch), PASSAGES),
    ):
        written = dual.generate(text, *seen, language, CLS, block.input_ids.shape[1])
        assert torch.equal(written * block.mask, block.input_ids)
    assert sums["information_text_to_graph"][0] / PAIRS > 1
