"""What `launch/train.py` makes of signals that come before or after the steps."""

import importlib.util
import os
import signal
import sys
import time

import pytest

from bali_ds.config import Recipe, dump_recipe
from tests.conftest import REPOSITORY

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
    monkeypatch.setattr("bali_ds.training.loop.train", signalled(number))
    assert script.main() == 75
    assert f"stopped by {number.name}" in capsys.readouterr().err


def test_a_run_that_is_stopped_while_it_evaluates_goes_on_later(script, monkeypatch, capsys):
    monkeypatch.setattr("bali_ds.training.loop.train", lambda *_, **__: None)
    monkeypatch.setattr("bali_ds.export.conclusion.conclude", signalled(signal.SIGUSR1))
    assert script.main() == 75
    assert "the same command resumes" in capsys.readouterr().err
