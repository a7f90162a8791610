"""The command `init`: its recipe is valid, its commands build the data, and what is missing is asked for."""

import shlex
from pathlib import Path

import pytest
from transformers import BertConfig, LlamaConfig

from bali_ds.cli import init, main
from bali_ds.config import load_recipe
from tests.conftest import REPOSITORY

SAMPLE = REPOSITORY / "shards/sample"
TOLD = ("--rrf", str(SAMPLE), "--corpus", f"pubtator:{SAMPLE}/corpus.pubtator")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_its_commands_build_what_its_recipe_names(capsys):
    told = [*TOLD, "--encoder", str(SAMPLE / "encoder")]
    assert main(["init", "my run.yaml", *told]) == 2  # no name of a run may hold a space
    assert "name: String should match pattern" in capsys.readouterr().err
    assert not Path("my run.yaml").exists()
    assert main(["init", "mine.yaml", *told]) == 0
    commands = [shlex.split(line)[1:] for line in capsys.readouterr().out.splitlines()]
    assert [command[0] for command in commands] == ["graph", "shards", "plan", "train"]
    for command in commands[:3]:
        assert main(command) == 0
    recipe = load_recipe("mine.yaml")
    assert (recipe.data.graph / "manifest.json").is_file()
    assert main(["init", "mine.yaml", *told]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (["--rrf", "nowhere"], "nowhere: does not exist"),
        (["--rrf", str(SAMPLE)], "--corpus: is missing"),
        (["--rrf", str(SAMPLE), "--corpus", "pubtatr:x"], "pubtator"),
        ([], "--rrf: is missing"),
        ([*TOLD, "--encoder", "pickled"], "pickled: has its weights as a pickle"),
    ],
)
def test_a_mistake_without_a_terminal_is_one_line(told, message, capsys):
    Path("pickled").mkdir()
    Path("pickled/pytorch_model.bin").write_bytes(b"")
    assert main(["init", "mine.yaml", *told]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("gpus", "kernels", "expected"), [(0, True, "fp32"), (0, False, "fp32"), (2, True, "bf16"), (2, False, "fp16")]
)
def test_its_precision_is_one_that_the_device_does_not_emulate(gpus, kernels, expected, monkeypatch):
    monkeypatch.setattr(init, "_gpus", lambda: gpus)
    monkeypatch.setattr(init, "has_bf16_kernels", lambda _: kernels)
    assert main(["init", "mine.yaml", *TOLD, "--encoder", str(SAMPLE / "encoder")]) == 0
    assert load_recipe("mine.yaml").precision == expected


def test_a_terminal_is_asked(monkeypatch):
    answers = iter([str(SAMPLE), f"pubtator:{SAMPLE}/corpus.pubtator", "org/encoder"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _: next(answers))
    assert main(["init", "mine.yaml"]) == 0
    assert load_recipe("mine.yaml").text_encoder.path == "org/encoder"


def test_only_new_weights_of_an_encoder_are_asked_for_a_masked_language_model():
    assert main(["init", "trained.yaml", *TOLD, "--encoder", "org/encoder"]) == 0
    assert load_recipe("trained.yaml").objective.masked_language_model.weight == 0
    encoders = {"encoder": BertConfig(), "decoder": LlamaConfig()}
    for name, config in encoders.items():
        config.save_pretrained(name)
        assert main(["init", f"{name}.yaml", *TOLD, "--encoder", name]) == 0
    weights = {name: load_recipe(f"{name}.yaml").objective.masked_language_model.weight for name in encoders}
    assert weights == {"encoder": 0.1, "decoder": 0}
    assert load_recipe("decoder.yaml").text_encoder.weights == "random"
