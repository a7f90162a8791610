"""The training command: its exit statuses, also for signals before and after the steps."""

import os
import signal
import subprocess
import sys
import time

import pytest

from bali_ds.checkpoint.manager import NotSaved
from bali_ds.cli.train import main
from bali_ds.config import Recipe, dump_recipe
from tests.conftest import REPOSITORY
from tests.ports import free_port

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@pytest.fixture
def arguments(tmp_path):
    """The arguments for a recipe whose data nobody opens."""
    recipe = Recipe.model_validate(
        {
            "name": "run",
            "runs": tmp_path,
            "data": {"graph": tmp_path / "graph", "shards": str(tmp_path / "shards")},
            "text_encoder": {"path": str(REPOSITORY / "shards/sample/encoder")},
            "batch": {"passages": 8},
            "steps": 1,
        }
    )
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield ["--config", str(tmp_path / "recipe.yaml")]
    for number, handler in before.items():
        signal.signal(number, handler)


def sending(number):
    def work(*_, **__):
        os.kill(os.getpid(), number)
        time.sleep(30)

    return work


@pytest.mark.parametrize("number", SIGNALS)
def test_a_run_that_is_stopped_while_it_starts_can_be_resumed(arguments, monkeypatch, capsys, number):
    monkeypatch.setattr("bali_ds.training.trainer.train", sending(number))
    assert main(arguments) == 75
    assert f"stopped by {number.name}" in capsys.readouterr().err


def test_a_run_whose_last_checkpoint_is_not_saved_ends_with_4_and_exports_nothing(arguments, monkeypatch, capsys):
    def train(*_, **__):
        raise NotSaved("the checkpoint of the last step, 1, was not saved: No space left on device")

    monkeypatch.setattr("bali_ds.training.trainer.train", train)
    monkeypatch.setattr("bali_ds.export.finalize.finalize", lambda *_: pytest.fail("exported"))
    assert main(arguments) == 4
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["train: the checkpoint of the last step, 1, was not saved: No space left on device"]


@pytest.mark.parametrize("when", ["never", "separate"])
def test_nothing_is_exported_unless_asked_for(arguments, monkeypatch, when):
    monkeypatch.setattr("bali_ds.training.trainer.train", lambda *_, **__: 7)
    monkeypatch.setattr("bali_ds.export.finalize.finalize", lambda *_: pytest.fail("exported"))
    assert main([*arguments, f"evaluation.when={when}"]) == 0


def test_the_checkpoint_of_the_last_step_is_exported(arguments, monkeypatch):
    exported = []
    monkeypatch.setattr("bali_ds.training.trainer.train", lambda *_, **__: 7)
    monkeypatch.setattr("bali_ds.export.finalize.finalize", lambda _, step: exported.append(step))
    monkeypatch.setattr("bali_ds.export.finalize.results_table", lambda _: "")
    assert main(arguments) == 0
    assert exported == [7]


def test_a_run_that_is_stopped_while_it_evaluates_can_be_resumed(arguments, monkeypatch, capsys):
    monkeypatch.setattr("bali_ds.training.trainer.train", lambda *_, **__: None)
    monkeypatch.setattr("bali_ds.export.finalize.finalize", sending(signal.SIGUSR1))
    assert main(arguments) == 75
    assert "the same command resumes" in capsys.readouterr().err


@pytest.mark.timeout(120)
def test_starting_afresh_removes_no_file_of_the_user(sample, tmp_path):
    recipe = sample.recipe(tmp_path)
    recipe.directory.mkdir()
    (recipe.directory / "thesis.tex").write_text("mine")
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    script = [sys.executable, REPOSITORY / "launch/train.py"]
    command = [*script, "--config", tmp_path / "recipe.yaml", "--resume", "never"]
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    alone |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    done = subprocess.run(command, env={**os.environ, **alone}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.endswith("run: holds thesis.tex, which is not part of a run by bali-ds; move it away\n")
    assert [path.name for path in recipe.directory.iterdir()] == ["thesis.tex"]
