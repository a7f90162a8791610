"""Every variant: its gradients, its plan, its export, and its training at every ZeRO stage."""

import json
import math
from pathlib import Path

import pytest
import torch

from bali_ds.data.loader import Loader
from bali_ds.model.build_model import build_aligner
from bali_ds.objectives.registry import stream_settings
from bali_ds.planning.run_data import RunData
from tests.conftest import run_ranks
from tests.model.calls import calls
from tests.model.odd_batches import with_hub, without_mentions
from tests.model.variants import VARIANTS, variant

STAGES = "0123"


@pytest.fixture(params=VARIANTS)
def parts(request, sample, tmp_path):
    recipe = variant(sample, tmp_path, request.param)
    data = RunData.open(recipe)
    aligner = build_aligner(recipe, 2 * data.graph.num_relations, data.shards).train()
    loader = Loader(data.shards, data.graph, stream_settings(recipe), global_batch=16)
    return aligner, next(loader).micro_batches[0]


def gradients(aligner, batch):
    aligner.zero_grad(set_to_none=True)
    loss, losses = aligner([batch])
    loss.backward()
    assert loss.isfinite()
    return losses, {name: parameter.grad for name, parameter in aligner.named_parameters()}


def test_every_parameter_gets_a_gradient_or_is_frozen(parts):
    aligner, batch = parts
    _, found = gradients(aligner, batch)
    learning = {name for name, parameter in aligner.named_parameters() if parameter.requires_grad}
    assert {name for name, gradient in found.items() if gradient is not None} == learning
    # LoRA starts with B = 0, so the first gradient of A is zero
    zero = {name for name in learning if not found[name].abs().max() and "lora_A" not in name}
    assert zero == set()


def test_odd_batches_have_finite_losses_and_all_gradients(parts):
    aligner, batch = parts
    odd = [without_mentions(batch)]
    if len(batch.targets):
        odd.append(with_hub(batch))
    for each in odd:
        _, found = gradients(aligner, each)
        for name, parameter in aligner.named_parameters():
            assert (found[name] is not None) == parameter.requires_grad, name
            assert found[name] is None or found[name].isfinite().all(), name


def test_modules_are_called_and_driven_back_in_the_same_order_whatever_a_batch_holds(parts):
    aligner, batch = parts
    if aligner.table is not None:
        aligner.table.keep_fresh(aligner.text)
        aligner.table.refresh_every = 100
    expected = calls(aligner, [batch])
    assert calls(aligner, [without_mentions(batch)]) == expected
    if len(batch.targets):
        assert calls(aligner, [with_hub(batch, 10)]) == expected


def test_chunks_give_the_gradients_of_the_views_together(sample, tmp_path):
    recipe = variant(sample, tmp_path, "linearized")
    data = RunData.open(recipe)
    found = []
    for micro_batches in (1, 2):
        aligner = build_aligner(recipe, 2 * data.graph.num_relations).train()
        step = next(
            Loader(data.shards, data.graph, stream_settings(recipe), global_batch=16, micro_batches=micro_batches)
        )
        loss, _ = aligner(step.micro_batches)
        loss.backward()
        found.append({name: parameter.grad for name, parameter in aligner.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=2e-6, msg=name)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("names", "stages"),
    [(["everything", "linearized"], "03"), pytest.param(list(VARIANTS), STAGES, marks=pytest.mark.slow)],
    ids=["short", "all"],
)
def test_every_variant_trains_at_every_stage_on_two_ranks(sample, tmp_path, names, stages):
    recipes = [variant(sample, tmp_path, name).model_dump(mode="json") for name in names]
    (tmp_path / "recipes.json").write_text(json.dumps(recipes))
    script = Path(__file__).with_name("variant_ranks.py")
    run_ranks(2, script, tmp_path / "recipes.json", tmp_path / "out.json", stages, timeout=1500)
    found = json.loads((tmp_path / "out.json").read_text())
    for name in names:
        first = found[f"{name}-0"]
        assert all(math.isfinite(value) for losses in first for value in losses.values())
        assert first[0]["loss"] != first[2]["loss"]
        for stage in stages[1:]:
            other = found[f"{name}-{stage}"]
            for one, another in zip(first, other, strict=True):
                assert another == pytest.approx(one, rel=2e-4, abs=1e-4), f"{name}, stage {stage}"
