"""A run that resumes on another number of ranks sees the samples that it would have seen."""

import json
import shutil

import pytest

from tests.system.test_bad_shards import ended, launch, recipe_of

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def discard_after(run, step):
    """Remove the checkpoints after a step and the mark of a complete run."""
    for checkpoint in (run / "checkpoints").glob("step-*"):
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    (run / "complete.json").unlink()


@pytest.mark.slow
@pytest.mark.parametrize("resumptions", [{2: 1}, {2: 1, 4: 2}], ids=["2-1", "2-1-2"])
def test_resuming_on_other_numbers_of_ranks_repeats_the_losses(sample, tmp_path, resumptions):
    steps = 2 * len(resumptions) + 2
    changes = {"steps": steps, "checkpoints": {"every": 2, "keep": 9}}
    recipe, config = recipe_of(sample, sample.shards, tmp_path, **changes)
    assert ended(launch(config))[0] == 0
    expected = losses(recipe.directory)
    for step, ranks in resumptions.items():
        discard_after(recipe.directory, step)
        status, _, said = ended(launch(config, ranks))
        assert status == 0, said
        assert f"step {step}, resumed at" in said
        # masks are those of the samples: with another sample in any batch the losses would differ visibly
        assert losses(recipe.directory) == pytest.approx(expected, rel=2e-4)
    assert sorted(expected) == list(range(1, steps + 1))
