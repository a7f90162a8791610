"""Text that the decoder generates at the end of a run, at every ZeRO stage, against generating each sequence alone."""

from html import unescape
from pathlib import Path

import pytest
import torch

from bali_ds.cli import main
from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.data.evaluation_batches import evaluation_batches
from bali_ds.data.settings import StreamSettings
from bali_ds.evaluation.generated_text import fact_texts, passage_text
from bali_ds.files import read_json
from bali_ds.model.build_model import build_aligner
from bali_ds.model.dual_decoder import FACTS, PASSAGES
from bali_ds.training.run_directory import RunData
from tests.conftest import run_ranks
from tests.training.cases import STAGES

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def recipe(sample, tiny_encoder, tmp_path_factory):
    """A run whose rates are so low that its weights stay as they were at first."""
    return sample.recipe(
        tmp_path_factory.mktemp("runs"),
        text_encoder={"path": str(tiny_encoder), "dropout": 0.0},
        objective={"dual": {"weight": 1.0, "layers": 1, "dropout": 0.0}},
        optimizer={"text_learning_rate": 1e-12, "graph_learning_rate": 1e-12},
        batch={"passages": 8},
        validation={"passages": 4},
        steps=2,
    )


@pytest.fixture(scope="module")
def expected(recipe):
    """Of each of the first held-out passages: its key, and the tokens that are true and written, by direction."""
    data = RunData.open(recipe)
    aligner = build_aligner(recipe, 2 * data.graph.num_relations).eval()
    dual, text = aligner.objectives["dual"], aligner.text
    settings = StreamSettings.of(recipe)
    [batch] = evaluation_batches(data.shards, data.graph, settings, batch_size=4, limit=4, triples=True)
    (passages,), (facts,) = batch.originals, batch.triples

    def written(given, language, block):
        ids = [int(block.input_ids[0, 0])]
        while len(ids) < block.input_ids.shape[1]:
            embedded = text.encoder.get_input_embeddings()(torch.tensor([ids]))
            states = dual.decoder(embedded, given[None], torch.ones(1, len(given), dtype=torch.bool), language)
            ids.append(int(text.head(states[0, -1]).argmax()))
        return ids

    rows = []
    with torch.no_grad():
        names = text.name_vectors(batch.names)
        nodes = aligner.graph(names[batch.node_names], batch.edge_index, batch.edge_relations)
        for row, sample in enumerate(batch.sample_ids.tolist()):
            true_text = passages.input_ids[row, : passages.lengths[row]]
            true_facts = facts.input_ids[row, : facts.lengths[row]]
            states = text.encoder(input_ids=true_text[None]).last_hidden_state[0]
            own = [node for node in batch.passage_nodes[row].tolist() if node >= 0]
            rows.append(
                {
                    "key": data.shards.key(sample),
                    "facts": (true_facts.tolist(), written(states, FACTS, facts)),
                    "passage": (true_text.tolist(), written(nodes[own], PASSAGES, passages)),
                }
            )
    return rows


@pytest.fixture(scope="module")
def trained(recipe):
    (recipe.runs / "recipe.json").write_text(recipe.model_dump_json())
    run_ranks(1, Path(__file__).with_name("generated_ranks.py"), recipe.runs / "recipe.json", timeout=800)
    return recipe.runs


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_write_what_the_decoder_writes_for_each_passage_alone(recipe, trained, expected, stage):
    found = read_json(trained / f"stage-{stage}/generated.json")
    tokenizer = Tokenizer.load(recipe.text_encoder.path)
    assert [each["sample"] for each in found] == [each["key"] for each in expected]
    for mine, plain in zip(found, expected, strict=True):
        for which, place in (("true", 0), ("written", 1)):
            assert mine["passage"][which] == passage_text(plain["passage"][place], tokenizer)
            assert mine["facts"][which] == fact_texts(plain["facts"][place], tokenizer)
    assert any(each["facts"]["true"] for each in found)


def test_the_report_shows_both_directions(trained, capsys):
    assert main(["report", str(trained / "stage-0")]) == 0
    page = unescape(Path(capsys.readouterr().out.strip()).read_text())
    assert "Written by the decoder" in page
    for sample in read_json(trained / "stage-0/generated.json"):
        assert sample["passage"]["true"] in page
        assert sample["passage"]["written"] in page
        assert all(fact in page for fact in [*sample["facts"]["true"], *sample["facts"]["written"]])
