"""Runs that resume from a checkpoint of another ZeRO stage and world size have the losses of a straight run."""

import json
from pathlib import Path

import pytest

from tests.checkpoint.scenarios import SCENARIOS, STRAIGHT
from tests.conftest import run_ranks

pytestmark = pytest.mark.timeout(900)
TOLERANCES = {"fp32": 1e-6, "bf16": 2e-3}


@pytest.fixture(scope="module", params=["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def losses(sample, tiny_encoder, tmp_path_factory, request):
    """The losses of each scenario by its name, and the precision's tolerance."""
    out = tmp_path_factory.mktemp(request.param)
    recipe = sample.recipe(
        out / "runs",
        text_encoder={"path": str(tiny_encoder), "dropout": 0.0},
        batch={"passages": 8},
        precision=request.param,
        optimizer={"text_learning_rate": 1e-3, "graph_learning_rate": 1e-3},
    )
    (out / "recipe.json").write_text(recipe.model_dump_json())
    run_ranks(1, Path(__file__).with_name("load_state_ranks.py"), out / "recipe.json", out, timeout=800)
    found = {each.name: json.loads((out / f"{each.name}.json").read_text()) for each in SCENARIOS}
    return found, TOLERANCES[request.param]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each.name)
def test_losses_are_those_of_the_straight_run(losses, scenario):
    found, tolerance = losses
    expected = found[STRAIGHT.name][scenario.first_step :][: scenario.steps]
    assert len(expected) == scenario.steps
    assert found[scenario.name] == pytest.approx(expected, rel=tolerance)
