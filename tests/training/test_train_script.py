"""What `launch/train.py` makes of signals that come before or after the steps."""

import importlib.util
import os
import signal
import subprocess
import sys
import time

import pytest

from bali_ds.checkpoint.manager import NotSaved
from bali_ds.config import Recipe, dump_recipe
from tests.conftest import REPOSITORY
from tests.forked import free_port

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@pytest.fixture
def script(tmp_path, monkeypatch):
    """The script with a recipe whose data nobody opens."""
    spec = importlib.util.spec_from_file_location("train_script", REPOSITORY / "launch/train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
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
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", str(tmp_path / "recipe.yaml")])
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield module
    for number, handler in before.items():
        signal.signal(number, handler)


def signalled(number):
    def work(*_, **__):
        os.kill(os.getpid(), number)
        time.sleep(30)

    return work


@pytest.mark.parametrize("number", SIGNALS)
def test_a_run_that_is_stopped_while_it_starts_goes_on_later(script, monkeypatch, capsys, number):
    monkeypatch.setattr("bali_ds.training.trainer.train", signalled(number))
    assert script.main() == 75
    assert f"stopped by {number.name}" in capsys.readouterr().err


def test_a_run_whose_last_checkpoint_is_not_saved_has_a_status_of_its_own_and_exports_nothing(
    script, monkeypatch, capsys
):
    def train(*_, **__):
        raise NotSaved("the checkpoint of the last step, 1, was not saved: No space left on device")

    monkeypatch.setattr("bali_ds.training.trainer.train", train)
    monkeypatch.setattr("bali_ds.export.finalize.finalize", lambda *_: pytest.fail("exported"))
    assert script.main() == 4
    said = capsys.readouterr().err.splitlines()
    assert said == ["train: the checkpoint of the last step, 1, was not saved: No space left on device"]


def test_the_checkpoint_that_training_ended_with_is_the_one_that_is_exported(script, monkeypatch):
    exported = []
    monkeypatch.setattr("bali_ds.training.trainer.train", lambda *_, **__: 7)
    monkeypatch.setattr("bali_ds.export.finalize.finalize", lambda _, step: exported.append(step))
    monkeypatch.setattr("bali_ds.export.finalize.results_table", lambda _: "")
    assert script.main() == 0
    assert exported == [7]


def test_a_run_that_is_stopped_while_it_evaluates_goes_on_later(script, monkeypatch, capsys):
    monkeypatch.setattr("bali_ds.training.trainer.train", lambda *_, **__: None)
    monkeypatch.setattr("bali_ds.export.finalize.finalize", signalled(signal.SIGUSR1))
    assert script.main() == 75
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
