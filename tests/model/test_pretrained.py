"""Models of strangers: whatever their files ask for, no code of theirs runs and no pickle is read."""

import ast
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, BertConfig, BertModel

from bali_ds.cli import main
from bali_ds.errors import InputError
from bali_ds.export.architecture import ExportArchitecture
from bali_ds.inference.encoder import load
from bali_ds.model.pretrained import fresh_model, load_configuration, load_model, load_tokenizer
from bali_ds.model.text_encoder import load_text_encoder
from bali_ds.training.run_directory import prepare
from tests.conftest import REPOSITORY

CODE = """
from pathlib import Path
from transformers import BertConfig, BertForMaskedLM, BertModel, BertTokenizerFast

Path({canary!r}).touch()


class StrangerConfig(BertConfig):
    model_type = "stranger"
"""
DOOR = "bali_ds/model/pretrained.py"


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "canary"


@pytest.fixture
def stranger(sample, tmp_path, canary):
    """A model directory that is whole, but of an architecture whose code lies beside it."""
    directory = tmp_path / "stranger"
    shutil.copytree(sample.encoder, directory)
    BertModel(BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(
        directory
    )
    (directory / "code.py").write_text(CODE.format(canary=str(canary)))
    config = json.loads((directory / "config.json").read_text())
    config |= {"model_type": "stranger", "auto_map": {"AutoConfig": "code.StrangerConfig"}}
    config["auto_map"] |= dict.fromkeys(("AutoModel", "AutoModelForMaskedLM"), "code.BertForMaskedLM")
    (directory / "config.json").write_text(json.dumps(config))
    settings = {"auto_map": {"AutoTokenizer": [None, "code.BertTokenizerFast"]}}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


@pytest.fixture
def consenting(monkeypatch):
    """Standard input that says yes to every question."""
    answers = io.StringIO("y\n" * 100)
    monkeypatch.setattr(sys, "stdin", answers)
    return answers


def test_the_trap_is_live(stranger, canary):
    AutoConfig.from_pretrained(stranger, trust_remote_code=True)
    assert canary.exists()


@pytest.mark.parametrize(
    "use",
    [
        load,
        load_configuration,
        load_tokenizer,
        lambda path: load_model(AutoModel, path),
        lambda path: load_text_encoder(str(path), seed=0),
        ExportArchitecture.of,
    ],
    ids=["load", "configuration", "tokenizer", "model", "training", "export"],
)
def test_no_code_of_a_model_is_executed(use, stranger, canary, consenting):
    with pytest.raises(InputError, match=r"stranger: needs code of its own \(auto_map in .*\), which is not executed;"):
        use(stranger)
    assert not canary.exists()
    assert consenting.tell() == 0


def test_a_configuration_alone_brings_no_code_either(canary, consenting):
    config = BertConfig(auto_map={"AutoModelForMaskedLM": "code.BertForMaskedLM"})
    assert fresh_model(AutoModelForMaskedLM, BertConfig(num_hidden_layers=1), "here")
    config.__class__ = type("StrangerConfig", (BertConfig,), {"model_type": "stranger"})
    with pytest.raises(InputError, match="here: needs code of its own"):
        fresh_model(AutoModelForMaskedLM, config, "here")
    assert not canary.exists()
    assert consenting.tell() == 0


@pytest.mark.parametrize("command", ["link", "encode", "plan", "shards build", "prepare"])
def test_no_command_asks_or_executes(command, stranger, canary, consenting, sample, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("C1||name 1\n")
    recipe = sample.recipe(tmp_path / "runs", text_encoder={"path": str(stranger)})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    corpus = f"pubtator:{REPOSITORY}/shards/sample/corpus.pubtator"
    commands = {
        "link": f"link --model {stranger} --dictionary {tmp_path}/names.txt -",
        "encode": f"encode --model {stranger} --out {tmp_path}/vectors.npy -",
        "plan": f"plan --config {tmp_path}/recipe.yaml",
        "shards build": f"shards build --graph {sample.graph} --corpus {corpus} --tokenizer {stranger} "
        f"--out {tmp_path}/shards",
    }
    if command == "prepare":
        with pytest.raises(InputError, match="needs code of its own"):
            prepare(recipe)
    else:
        assert main(commands[command].split()) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "needs code of its own (auto_map in config.json), which is not executed; choose" in line
    assert not canary.exists()
    assert consenting.tell() == 0


def test_mentions_on_a_pipe_answer_no_question(stranger, canary, tmp_path):
    (tmp_path / "names.txt").write_text("C1||name 1\n")
    command = f"link --model {stranger} --dictionary {tmp_path}/names.txt -".split()
    done = subprocess.run(
        [sys.executable, "-m", "bali_ds", *command], input="y\n" * 9, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert not canary.exists()


def test_a_known_architecture_is_loaded_by_the_code_of_transformers(sample, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(sample.encoder, directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "code.Missing"}}))
    assert load_configuration(directory).model_type == "bert"


class _Exploding:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("weights", ["sound", "exploding"])
def test_pickled_weights_are_refused_unread(weights, sample, tmp_path, canary):
    directory = tmp_path / "model"
    shutil.copytree(sample.encoder, directory)
    content = {"sound": {"weight": torch.zeros(2)}, "exploding": _Exploding(canary)}[weights]
    torch.save(content, directory / "pytorch_model.bin")
    for use in (load, lambda path: load_text_encoder(str(path), seed=0)):
        with pytest.raises(
            InputError, match=r"pickle \(pytorch_model.bin\), which is not read; convert them to safeten"
        ):
            use(directory)
    assert not canary.exists()


def test_an_adapter_does_not_choose_the_model(sample, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(sample.encoder, directory)
    (directory / "model.safetensors").touch()
    (directory / "adapter_config.json").write_text('{"base_model_name_or_path": "other/model"}')
    with pytest.raises(InputError, match="holds an adapter of peft"):
        load_text_encoder(str(directory), seed=0)


@pytest.mark.parametrize("damage", ['{"model_type": "bert", "hidden_size": []}', "[]", '{"model_type": 3}', "", "{"])
def test_a_damaged_configuration_is_one_line(damage, sample, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(sample.encoder, directory)
    (directory / "config.json").write_text(damage)
    with pytest.raises(InputError) as caught:
        load_text_encoder(str(directory), seed=0, weights="random")
    assert "\n" not in str(caught.value)


def _calls(tree):
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def test_transformers_loads_through_one_door():
    """Calls that could execute a model's code or read a pickle, and lie elsewhere."""
    door = {"from_pretrained", "from_config", "SentenceTransformer", "pipeline"}
    harmless = {"tokenizers.Tokenizer.from_pretrained"}  # reads tokenizer.json, which is data
    found = []
    for folder in ("bali_ds", "launch", "bench", "shards"):
        for file in sorted((REPOSITORY / folder).rglob("*.py")):
            for call in _calls(ast.parse(file.read_text(encoding="utf-8"))):
                name, words = ast.unparse(call.func), {each.arg: ast.unparse(each.value) for each in call.keywords}
                where = f"{file.relative_to(REPOSITORY)}:{call.lineno}: {name}"
                if words.get("trust_remote_code", "False") != "False" or (
                    name == "torch.load" and words.get("weights_only") != "True"
                ):
                    found.append(where)
                if name.rpartition(".")[2] not in door or name in harmless:
                    continue
                if file != REPOSITORY / DOOR or "trust_remote_code" not in words:
                    found.append(where)
    assert not found
