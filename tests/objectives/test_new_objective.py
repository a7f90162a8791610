"""What a new objective takes: a section, a class and a line of a dict; its part goes through worker processes, too."""

import subprocess
import sys
from contextlib import closing

import pytest
import torch

from bali_ds.data.loader import Loader
from bali_ds.model.build_model import build_aligner
from bali_ds.objectives.registry import OBJECTIVES, stream_settings
from bali_ds.planning.run_data import RunData
from tests.objectives.toys import FirstNodes, ToyObjective, ToyObjectiveConfig


@pytest.fixture
def recipe(sample, tmp_path, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, ToyObjective.name, ToyObjective)
    recipe = sample.recipe(tmp_path)
    objective = ToyObjectiveConfig.model_validate({"toy": {"weight": 0.5, "scale": 2.0}, "contrastive": {"weight": 0}})
    return recipe.model_copy(update={"objective": objective})


def test_a_toy_objective_trains_on_batches_of_worker_processes(recipe):
    data = RunData.open(recipe)
    aligner = build_aligner(recipe, 2 * data.graph.num_relations).train()
    optimizer = torch.optim.SGD(aligner.parameters(), lr=0.01)
    settings = stream_settings(recipe)
    made = []
    for workers in (0, 1):
        loader = Loader(data.shards, data.graph, settings, global_batch=16, micro_batches=2, workers=workers)
        with closing(loader):
            made.append([next(loader) for _ in range(2)])
    for step, other in zip(*made, strict=True):
        for batch, same in zip(step.micro_batches, other.micro_batches, strict=True):
            own: FirstNodes = batch.parts["toy"]
            assert torch.equal(own.nodes, same.parts["toy"].nodes)
            assert torch.equal(own.lengths, same.parts["toy"].lengths)
            assert set(own.nodes.tolist()) <= set(batch.targets.tolist())
        loss, losses = aligner(step.micro_batches)
        expected = 0.5 * losses["toy"] + losses["masked_language_model"]
        torch.testing.assert_close(loss.detach(), expected)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for name, parameter in aligner.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
        assert aligner.objectives["toy"].weight.grad.abs().max() > 0
        assert next(aligner.graph.layers.parameters()).grad.abs().max() > 0


def test_needs_of_an_objective_are_checked_against_the_graph_encoder():
    objective = ToyObjectiveConfig.model_validate({"toy": {"weight": 1.0}})
    objective.check_needs(linearized=False, name_gradients=True)
    with pytest.raises(ValueError, match=r"objective\.toy: needs another graph_encoder.kind"):
        objective.check_needs(linearized=True, name_gradients=True)


def test_every_section_of_the_recipe_has_an_objective_of_its_name():
    from bali_ds.config import ObjectiveConfig

    assert list(OBJECTIVES) == list(ObjectiveConfig.model_fields)
    assert all(name == kind.name for name, kind in OBJECTIVES.items())


def test_batch_parts_keep_torch_and_pydantic_out_of_worker_processes():
    script = (
        "import sys; import bali_ds.data.worker, bali_ds.objectives.registry; "
        "print([name for name in ('torch', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
