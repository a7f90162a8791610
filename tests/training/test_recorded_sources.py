"""A run directory may come from a stranger: the shards that it names are opened only if that cannot run a program."""

import json

import pytest
import yaml

from bali_ds.cli import main, train
from bali_ds.config import dump_recipe, load_recipe
from bali_ds.errors import InputError
from bali_ds.training.run_directory import prepare
from tests.conftest import REPOSITORY


@pytest.fixture
def canary(tmp_path, monkeypatch):
    monkeypatch.setenv("BALI_DS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "canary"


@pytest.fixture
def command(sample, canary):
    return f"pipe:touch {canary}; cat {sample.shards}/{{name}}"


@pytest.fixture(params=["alone", "mixed"])
def run(request, sample, command, tmp_path):
    """A run directory with a refused step, whose recipe names a command."""
    shards = command if request.param == "alone" else {str(sample.shards): 2, command: 1}
    recipe = sample.recipe(tmp_path / "runs", data={"graph": sample.graph, "shards": shards, "workers": 0})
    prepare(recipe)
    (recipe.directory / "checkpoints").mkdir()
    (recipe.directory / "failures").mkdir()
    ranks = [{"rank": 0, "host": "here", "concepts": [], "samples": []}]
    record = {"step": 4, "start": {"epoch": 0, "samples_seen": 48}, "ranks": ranks}
    (recipe.directory / "failures" / "step-00000004.json").write_text(json.dumps(record))
    return recipe.directory


def test_training_and_plan_alone_open_what_a_recipe_names():
    """Both are handed recipes by `load_recipe`. What reads an export or describes a run must not join them."""
    package = REPOSITORY / "bali_ds"

    def callers(*names: str) -> set[str]:
        files = {path.relative_to(package).as_posix(): path.read_text() for path in package.rglob("*.py")}
        return {path for path, text in files.items() if any(name in text for name in names)}

    openers = {"planning/run_data.py", "data/mixture.py", "data/remote.py", "export/finalize.py"}
    assert callers("open_mixture", "open_shards") == openers
    plans = {"planning/run_plan.py", "planning/passage_counts.py"}
    assert callers("RunData.open(") == {"training/startup.py", "training/replay.py", *plans}


def refused_in_one_line(capsys):
    output = capsys.readouterr().err
    assert output.count("\n") == 1
    assert "recipe.yaml: data.shards: 'pipe:" in output
    assert "pass it on the command line as data.shards=" in output


def test_replay_and_plan_refuse_the_command_of_a_run_directory(run, canary, capsys):
    assert main(["replay", str(run), "4"]) == 2
    refused_in_one_line(capsys)
    assert main(["plan", "--config", str(run / "recipe.yaml"), "seed=4"]) == 2
    refused_in_one_line(capsys)
    assert main(["finalize", str(run)]) == 2
    refused_in_one_line(capsys)
    assert not canary.exists()


def test_training_from_the_recipe_of_a_run_directory_refuses_it(run, canary, capsys):
    assert train.main(["--config", str(run / "recipe.yaml")]) == 2
    refused_in_one_line(capsys)
    assert not canary.exists()


def test_other_shards_on_the_command_line_take_its_place(run, sample, canary, capsys):
    assert main(["replay", str(run), "4", f"data.shards={sample.shards}"]) == 2
    assert "holds no checkpoint from before step 4" in capsys.readouterr().err
    assert main(["plan", "--config", str(run / "recipe.yaml"), f"data.shards={sample.shards}"]) == 0
    assert not canary.exists()


def test_the_users_own_command_is_run(run, command, canary, capsys, tmp_path):
    assert main(["replay", str(run), "4", f"data.shards='{command}'"]) == 2
    assert "holds no checkpoint from before step 4" in capsys.readouterr().err
    canary.unlink()
    own = tmp_path / "recipe.yaml"
    own.write_text((run / "recipe.yaml").read_text())
    assert main(["plan", "--config", str(own)]) == 0
    canary.unlink()


def test_a_run_whose_shards_come_out_of_a_command_is_resumed_by_its_recipe(run, tmp_path):
    own = tmp_path / "recipe.yaml"
    own.write_text((run / "recipe.yaml").read_text())
    recipe = load_recipe(own)
    prepare(recipe)
    assert (run / "recipe.yaml").read_text() == dump_recipe(recipe)


@pytest.mark.parametrize(
    ("location", "opened"),
    [
        ("shards", True),
        ("/data/shards", True),
        ("http://host/shards", True),
        ("https://host/shards", True),
        ("s3://bucket/shards", True),
        ("gs://bucket/shards", True),
        ("hf://datasets/a/b", True),
        ("pipe:cat {name}", False),
        ("pipe:no name", False),
        ("file:///etc", False),
        ("local://etc", False),
        ("reference::http://host/a.json", False),
        ("simplecache::s3://bucket/shards", False),
        ("http://host/a::file:///etc", False),
        ("zip://*::/data/a.zip", False),
        ("github://owner:repository@/shards", False),
        ("ssh://host/shards", False),
        ("HTTP://host/shards", False),
        ("memory://shards", False),
    ],
)
def test_a_run_directory_names_directories_and_plain_downloads(tmp_path, location, opened):
    values = {"name": "a", "data": {"graph": "g", "shards": location}, "text_encoder": {"path": "e"}, "steps": 3}
    own, record = tmp_path / "recipe.yaml", tmp_path / "a" / "recipe.yaml"
    (record.parent / "checkpoints").mkdir(parents=True)
    for file in (own, record):
        file.write_text(yaml.safe_dump(values))
    assert load_recipe(own).data.shards == (location if location != "shards" else f"{tmp_path}/shards")
    for shards in (location, {"shards": 1, location: 2}):
        record.write_text(yaml.safe_dump(values | {"data": {"graph": "g", "shards": shards}}))
        if opened:
            load_recipe(record)
            continue
        with pytest.raises(
            InputError, match=r"data\.shards: .* the recipe of a run directory is not trusted"
        ) as caught:
            load_recipe(record, ["steps=4"])
        assert "\n" not in str(caught.value)
        assert load_recipe(record, ["data.shards=pipe:cat {name}"]).data.shards == "pipe:cat {name}"
