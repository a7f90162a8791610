"""Training that ends with its last checkpoint, and the command that exports and evaluates it afterwards."""

import os
import shutil
import subprocess
import sys

import pytest

from bali_ds.cli import main
from bali_ds.config import dump_recipe
from bali_ds.errors import InputError
from bali_ds.export.finalize import finalize, is_finalized
from bali_ds.files import read_json
from tests.conftest import REPOSITORY, run_ranks


@pytest.fixture(scope="module")
def trained(sample, tiny_encoder, tmp_path_factory):
    """A run of two steps, and what training printed."""
    out = tmp_path_factory.mktemp("separate")
    recipe = sample.recipe(
        out / "runs",
        text_encoder={"path": str(tiny_encoder)},
        batch={"passages": 8},
        steps=2,
        validation={"passages": 8},
        evaluation={"when": "separate"},
    )
    (out / "recipe.yaml").write_text(dump_recipe(recipe))
    return recipe, run_ranks(2, REPOSITORY / "launch/train.py", "--config", out / "recipe.yaml")


def test_training_ends_without_an_export_and_says_how_to_go_on(trained):
    recipe, said = trained
    assert f"bali-ds finalize {recipe.directory}" in said
    assert not (recipe.directory / "export").exists()
    assert not (recipe.directory / "complete.json").exists()


def test_deepspeed_does_not_tell_of_its_search_for_an_accelerator(trained, tmp_path):
    recipe, _ = trained
    command = [sys.executable, "-m", "bali_ds", "export", recipe.directory, "--out", tmp_path / "out"]
    environment = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    assert "tensors match the checkpoint" in done.stdout
    assert "accelerator" not in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.system
def test_the_launcher_ends_with_0_after_the_last_checkpoint(trained):
    recipe, _ = trained
    path = recipe.runs.parent / "recipe.yaml"
    command = [sys.executable, "-m", "bali_ds", "train", path, "name=launched", "--ranks", "2", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bali-ds finalize" in done.stdout + done.stderr
    assert {path.name for path in (recipe.runs / "launched/checkpoints").iterdir()} == {"step-00000002"}
    assert not (recipe.runs / "launched/complete.json").exists()


def test_a_run_without_its_report_is_not_complete(trained, monkeypatch, capsys):
    def write_report(_):
        raise InputError("report.html: cannot be written: No space left on device")

    recipe, _ = trained
    monkeypatch.setattr("bali_ds.export.finalize.write_report", write_report)
    assert main(["finalize", str(recipe.directory)]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert (recipe.directory / "evaluation.json").exists()
    assert not (recipe.directory / "complete.json").exists()


def test_finalize_exports_evaluates_and_reports(trained, capsys):
    recipe, _ = trained
    assert main(["finalize", str(recipe.directory)]) == 0
    assert "R@1 on held-out passages" in capsys.readouterr().out
    assert {path.name for path in recipe.directory.iterdir()} >= {"export", "evaluation.json", "report.html"}
    assert read_json(recipe.directory / "complete.json") == {"recipe": dump_recipe(recipe)}


def test_what_was_evaluated_before_an_interruption_is_kept(trained, capsys, monkeypatch):
    recipe, _ = trained
    before = read_json(recipe.directory / "evaluation.json")

    def describe_embedding(*_):
        raise InputError("computed again")

    monkeypatch.setattr("bali_ds.export.finalize.describe_embedding", describe_embedding)
    assert main(["finalize", str(recipe.directory)]) == 0
    assert "embedding: evaluated before, from the same checkpoint and settings; kept" in capsys.readouterr().err
    assert read_json(recipe.directory / "evaluation.json") == before
    # another encoder to start from: the comparison is another one
    assert main(["finalize", str(recipe.directory), "text_encoder.dropout=0.2"]) == 2
    assert "computed again" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", [None, "", "[]", "{}", '{"progress": 3}', '{"identity": null, "files": [1]}', "\x00"]
)
def test_a_marker_that_cannot_be_read_is_one_line(trained, tmp_path, capsys, content):
    shutil.copytree(trained[0].directory, tmp_path / "own")
    recipe = trained[0].model_copy(update={"runs": tmp_path, "name": "own"})
    marker = recipe.directory / "checkpoints/step-00000002/COMPLETE.json"
    marker.unlink()
    if content is not None:
        marker.write_text(content)
    with pytest.raises(InputError, match=r"COMPLETE\.json"):
        finalize(recipe, 2)
    assert main(["finalize", str(recipe.directory)]) == 2
    assert "step-00000002: not used, " in capsys.readouterr().err
    (recipe.directory / "complete.json").unlink(missing_ok=True)
    assert not is_finalized(recipe)
    if content is not None:
        (recipe.directory / "complete.json").write_text(content)
        assert not is_finalized(recipe)


def test_a_run_that_is_not_trained_to_its_end_is_refused(trained, capsys):
    recipe, _ = trained
    longer = recipe.model_copy(update={"steps": 5})
    (recipe.directory / "recipe.yaml").write_text(dump_recipe(longer))
    assert main(["finalize", str(recipe.directory)]) == 2
    assert (
        f"is at step 2 of 5; train it to the end first: bali-ds train {recipe.directory}/recipe.yaml"
        in capsys.readouterr().err
    )
