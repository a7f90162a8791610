"""Every kind of model goes the whole way: planned without weights, exported from a checkpoint, loaded again."""

import shutil

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from bali_ds.config import dump_recipe
from bali_ds.export.run import export_run
from bali_ds.files import write_json
from bali_ds.inference.aligned import load_aligned
from bali_ds.model.build import build_aligner
from bali_ds.preflight.plan import plan
from bali_ds.stream.evaluation import evaluation_batches
from bali_ds.stream.settings import StreamSettings
from bali_ds.training.run import Data

KINDS = {
    kind: {"graph_encoder": {"kind": kind, "dropout": 0.0}} for kind in ("gatv2", "graphsage", "compgcn", "linearised")
}


@pytest.fixture(params=KINDS)
def recipe(request, sample, tmp_path):
    return sample.recipe(tmp_path / "runs", **KINDS[request.param])


def write_run(recipe, aligner) -> None:
    """A run with one checkpoint of stage 0, of weights that were never trained."""
    shutil.rmtree(recipe.directory, ignore_errors=True)
    checkpoint = recipe.directory / "checkpoints/step-00000001"
    checkpoint.mkdir(parents=True)
    torch.save({"module": aligner.state_dict()}, checkpoint / "mp_rank_00_model_states.pt")
    write_json(checkpoint / "COMPLETE.json", {"progress": {"step": 1}})
    (recipe.directory / "recipe.yaml").write_text(dump_recipe(recipe))
    for part in (AutoConfig, AutoTokenizer):
        part.from_pretrained(recipe.text_encoder.path).save_pretrained(recipe.directory / "encoder")


def test_a_loaded_export_gives_the_views_of_the_trained_model(recipe, tmp_path):
    data = Data.open(recipe)
    aligner = build_aligner(recipe, 2 * data.graph.num_relations).eval()
    for parameter in aligner.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    write_run(recipe, aligner)
    export_run(recipe.directory, tmp_path / "export", "float32")
    loaded, again = load_aligned(tmp_path / "export")
    assert again == recipe
    batch = next(evaluation_batches(data.shards, data.graph, StreamSettings.of(recipe), batch_size=8))
    with torch.no_grad():
        expected, found = aligner.encode(batch), loaded.encode(batch)
    torch.testing.assert_close(found.text, expected.text)
    torch.testing.assert_close(found.graph, expected.graph)


def test_the_plan_counts_its_parameters(recipe):
    planned = plan(recipe, ranks=2, on_gpu=False)
    data = Data.open(recipe)
    built = build_aligner(recipe, 2 * data.graph.num_relations)
    assert sum(planned.parameters.values()) == sum(parameter.numel() for parameter in built.parameters())
    assert planned.memory[0].activations > 0
