"""The table of cached name vectors is the same in a resumed run, also where ZeRO partitions the weights."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tests.conftest import run_ranks

pytestmark = pytest.mark.timeout(600)
SAVED_AFTER = 2


@pytest.fixture(scope="module")
def kept(sample, tiny_encoder, tmp_path_factory):
    """Of each run, what each rank had before its first step and after every step."""
    out = tmp_path_factory.mktemp("table")
    recipe = sample.recipe(
        out / "runs",
        text_encoder={"path": str(tiny_encoder), "dropout": 0.0},
        graph_encoder={"names": "cached", "refresh_every": 3, "dropout": 0.0},
        batch={"passages": 8},
        optimizer={"text_learning_rate": 1e-3, "graph_learning_rate": 1e-3},
    )
    (out / "recipe.json").write_text(recipe.model_dump_json())
    run_ranks(2, Path(__file__).with_name("name_table_ranks.py"), out / "recipe.json", out, timeout=500)
    return [torch.load(out / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]


def test_the_straight_run_refreshes_its_table_at_the_first_and_the_fourth_step(kept):
    vectors = [each["vectors"] for each in kept[0]["straight"]]
    made = [not torch.equal(one, other) for one, other in pairwise(vectors)]
    assert made == [True, False, False, True, False]
    assert [int(each["age"]) for each in kept[0]["straight"]] == [-1, 1, 2, 3, 1, 2]


@pytest.mark.parametrize("stage", [3, 1])
def test_a_resumed_run_has_the_same_table_and_refreshes_it_at_the_same_step(kept, stage):
    for rank in range(2):
        straight, resumed = kept[rank]["straight"][SAVED_AFTER:], kept[rank][f"stage {stage}"]
        assert torch.equal(resumed[0]["vectors"], straight[0]["vectors"])
        for one, other in zip(resumed, straight, strict=True):
            assert torch.equal(one["age"], other["age"])
            torch.testing.assert_close(one["vectors"], other["vectors"], rtol=1e-5, atol=1e-6)
        for one, other in zip(resumed[1:], straight[1:], strict=True):
            torch.testing.assert_close(one["loss"], other["loss"], rtol=1e-6, atol=0)


def test_all_ranks_have_one_table(kept):
    for name, mine in kept[0].items():
        for one, other in zip(mine, kept[1][name], strict=True):
            assert torch.equal(one["vectors"], other["vectors"])
