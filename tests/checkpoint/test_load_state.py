"""A checkpoint of any stage and world size goes on at any other as if nothing had changed."""

import json
from pathlib import Path

import pytest

from tests.conftest import run_ranks

pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("bf16", 2e-3)])
def test_other_stages_and_ranks_continue_the_straight_run(sample, tiny_encoder, tmp_path, precision, tolerance):
    recipe = sample.recipe(
        tmp_path / "runs",
        text_encoder={"path": str(tiny_encoder), "dropout": 0.0},
        batch={"passages": 8},
        precision=precision,
        optimizer={"text_learning_rate": 1e-3, "graph_learning_rate": 1e-3},
    )
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    run_ranks(1, Path(__file__).with_name("load_state_ranks.py"), tmp_path / "recipe.json", tmp_path, timeout=800)
    turns = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    straight = next(losses for _, _, _, losses in turns if len(losses) == 6)
    first_step = {"none": 0, "1-1": 4}
    assert len(turns) == 17
    for world_size, stage, begin, losses in turns:
        expected = straight[first_step.get(begin, 2) :][: len(losses)]
        assert losses == pytest.approx(expected, rel=tolerance), (world_size, stage, begin)
