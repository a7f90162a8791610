"""Every kind of model goes the whole way: planned without weights, exported from a checkpoint, loaded again."""

import shutil
from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer

from bali_ds.checkpoint.marker import write_marker
from bali_ds.config import Recipe
from bali_ds.data.evaluation_batches import evaluation_batches
from bali_ds.data.sampler import Position
from bali_ds.errors import InputError
from bali_ds.export.export_run import export_run
from bali_ds.export.public_recipe import public_recipe
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.inference.aligned_model import load_aligned
from bali_ds.inference.encoder import load
from bali_ds.model.build_model import build_aligner
from bali_ds.objectives.registry import stream_settings
from bali_ds.planning.run_data import RunData
from bali_ds.planning.run_plan import plan
from bali_ds.training.run_directory import prepare
from tests.model.variants import VARIANTS, variant

KINDS = {kind: {"graph_encoder": {"kind": kind, "dropout": 0.0}} for kind in ("gatv2", "graphsage", "linearized")}


@pytest.fixture(params=[*KINDS, "everything", "frozen", "cached", "learned", "lora"])
def recipe(request, sample, tmp_path):
    if request.param in VARIANTS:
        return variant(sample, tmp_path / "runs", request.param)
    return sample.recipe(tmp_path / "runs", **KINDS[request.param])


def write_run(recipe, aligner) -> None:
    """A run with one checkpoint of stage 0, of weights that were never trained."""
    shutil.rmtree(recipe.directory, ignore_errors=True)
    checkpoint = recipe.directory / "checkpoints/step-00000001"
    checkpoint.mkdir(parents=True)
    torch.save({"module": aligner.state_dict()}, checkpoint / "mp_rank_00_model_states.pt")
    write_marker(checkpoint, 1, Position(), {}, {})
    prepare(recipe)


def test_a_loaded_export_gives_the_views_of_the_trained_model(recipe, tmp_path):
    data = RunData.open(recipe)
    aligner = build_aligner(recipe, 2 * data.graph.num_relations, data.shards).eval()
    for parameter in aligner.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    write_run(recipe, aligner)
    export_run(recipe.directory, tmp_path / "export", "float32")
    loaded, again = load_aligned(tmp_path / "export")
    shown = Recipe.model_validate(public_recipe(recipe))
    own = shown.text_encoder.model_copy(update={"path": str(tmp_path / "export"), "weights": "pretrained"})
    assert again == shown.model_copy(update={"text_encoder": own})
    # an export does not hold the table of all names; it encodes the names that it needs
    aligner.table = None
    if aligner.names != "learned":
        aligner.names = "gradient"
    settings = replace(stream_settings(recipe), name_rows=False, each_mention=False)
    batch = next(evaluation_batches(data.shards, data.graph, settings, batch_size=8))
    with torch.no_grad():
        expected, found = aligner.encode(batch), loaded.encode(batch)
    torch.testing.assert_close(found.text, expected.text, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.graph, expected.graph, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["mean", "first", "attention"])
def test_a_loaded_encoder_pools_mentions_as_in_training(sample, tmp_path, kind):
    recipe = sample.recipe(tmp_path / "runs", text_encoder={"path": str(sample.encoder), "pooling": kind})
    data = RunData.open(recipe)
    aligner = build_aligner(recipe, 2 * data.graph.num_relations).eval()
    write_run(recipe, aligner)
    export_run(recipe.directory, tmp_path / "export", "float32")
    text = "Nausea and abdominal pain after colorectal carcinoma."
    start = text.index("colorectal")
    (found,) = load(tmp_path / "export").encode_mentions([(text, start, len(text) - 1)])
    tokenizer = AutoTokenizer.from_pretrained(sample.encoder)
    tokens = tokenizer(text, return_offsets_mapping=True)
    places = [place for place, (low, high) in enumerate(tokens["offset_mapping"]) if start <= low < high < len(text)]
    assert len(places) > 1
    with torch.no_grad():
        states = aligner.text.encoder(input_ids=torch.tensor([tokens["input_ids"]])).last_hidden_state[0, places]
        weights = torch.full((len(places), 1), 1 / len(places))
        if kind == "first":
            weights = torch.eye(len(places))[:, :1]
        elif kind == "attention":
            scores = states @ aligner.pooling.score.weight[0]
            weights = (scores.exp() / scores.exp().sum())[:, None]
        expected = (weights * states).sum(dim=0)
    torch.testing.assert_close(torch.from_numpy(found), expected / expected.norm(), atol=1e-5, rtol=1e-4)
    assert ("encode_mentions" in (tmp_path / "export/README.md").read_text()) == (kind != "mean")
    (tmp_path / "export/mention_pooling.safetensors").unlink(missing_ok=True)
    if kind == "attention":
        with pytest.raises(InputError, match=r"mention_pooling\.safetensors: .*No such file"):
            load(tmp_path / "export")


def test_learned_embeddings_are_refused_for_another_graph(sample, graph_directory, tmp_path):
    recipe = variant(sample, tmp_path / "runs", "learned")
    data = RunData.open(recipe)
    write_run(recipe, build_aligner(recipe, 2 * data.graph.num_relations, data.shards))
    export_run(recipe.directory, tmp_path / "export")
    aligner, _ = load_aligned(tmp_path / "export", graph=data.graph)
    assert aligner.graph.concepts.num_embeddings == data.graph.num_concepts + 1
    with pytest.raises(InputError, match=f"concept embeddings of graph {data.graph.fingerprint}"):
        load_aligned(tmp_path / "export", graph=KnowledgeGraph.open(graph_directory))


def test_the_plan_counts_its_parameters(recipe):
    planned = plan(recipe, ranks=2, on_gpu=False)
    data = RunData.open(recipe)
    built = build_aligner(recipe, 2 * data.graph.num_relations, data.shards)
    parts = [parameter for name, parameter in built.named_parameters() if "." in name]
    assert sum(planned.parameters.values()) == sum(parameter.numel() for parameter in parts)
    assert planned.memory[0].activations > 0
    rows = data.graph.num_names + 1 + data.shards.index["max_name_tokens"]
    expected = 4 * rows * built.text.width if recipe.graph_encoder.names == "cached" else 0
    assert [memory.names for memory in planned.memory] == [expected] * 4
