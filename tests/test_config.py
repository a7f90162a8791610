import json
from pathlib import Path

import pytest
import yaml

from bali_ds.config import Recipe, dump_recipe, load_recipe
from bali_ds.config.recipe_paths import PATHS
from bali_ds.config.section import Section
from bali_ds.errors import InputError

SMALLEST = {"name": "a", "data": {"graph": "g", "shards": "s"}, "text_encoder": {"path": "e"}, "steps": 3}


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(SMALLEST))
    return path


def test_defaults_are_those_of_the_method(recipe_file):
    recipe = load_recipe(recipe_file)
    assert (recipe.masking.tokens, recipe.masking.mentions, recipe.masking.names) == (0.15, 0.15, 0.15)
    assert recipe.objective.contrastive.kind == "ntxent"
    assert recipe.objective.contrastive.temperature == 0.07
    assert recipe.data.fan_out == 3


def test_overrides_reach_nested_keys_and_keep_their_types(recipe_file):
    recipe = load_recipe(recipe_file, ["optimizer.warmup=0.2", "deepspeed=ds_configs/zero3.json", "batch.passages=8"])
    assert recipe.optimizer.warmup == 0.2
    assert str(recipe.deepspeed) == "ds_configs/zero3.json"
    assert recipe.batch.passages == 8


def test_a_dumped_recipe_reads_back_equal(recipe_file, tmp_path):
    paths = [f"{key}={tmp_path}/{key}" for key in ("runs", "deepspeed")]
    recipe = load_recipe(
        recipe_file, [*paths, f"evaluation.linking={{dictionary: {tmp_path}/d, queries: {tmp_path}/q}}"]
    )
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "again.yaml") == recipe


PLACED = {
    "runs": "out", "deepspeed": "./ds.json",
    "data": {"graph": "../graph", "shards": {"one": 1, "https://host/two": 2, "pipe:cat {name}": 1}},
    "text_encoder": {"path": "encoder"},
    "evaluation": {"linking": {"dictionary": "~/names.txt", "queries": "bioc-xml:dev/corpus.xml"}},
}  # fmt: skip


def test_paths_are_relative_to_the_recipe(tmp_path, monkeypatch):
    (tmp_path / "work/recipes/encoder").mkdir(parents=True)
    (tmp_path / "work/recipes/recipe.yaml").write_text(yaml.safe_dump(SMALLEST | PLACED))
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(Path("work/recipes/recipe.yaml"))
    assert (str(recipe.runs), str(recipe.deepspeed)) == ("work/recipes/out", "work/recipes/ds.json")
    assert str(recipe.data.graph) == "work/graph"
    assert recipe.data.shards == {"work/recipes/one": 1, "https://host/two": 2, "pipe:cat {name}": 1}
    assert recipe.text_encoder.path == "work/recipes/encoder"
    assert str(recipe.evaluation.linking.dictionary) == "/home/somebody/names.txt"
    assert str(recipe.evaluation.linking.queries) == "bioc-xml:work/recipes/dev/corpus.xml"


def test_other_paths_are_relative_to_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    file = tmp_path / "recipes/recipe.yaml"
    file.write_text(yaml.safe_dump(SMALLEST | {"text_encoder": {"path": "team/model"}}))
    monkeypatch.setenv("HOME", "/home/somebody")
    linking = "evaluation.linking={dictionary: d, queries: q}"
    recipe = load_recipe(file, ["data.shards=~/shards", "data.graph=graph", linking])
    assert (recipe.data.shards, str(recipe.data.graph)) == ("/home/somebody/shards", "graph")
    assert str(recipe.evaluation.linking.dictionary) == "d"
    assert (str(recipe.runs), str(recipe.deepspeed)) == ("runs", "zero1")  # defaults
    assert recipe.text_encoder.path == "team/model"  # on the Hub, as there is no such directory
    (tmp_path / "recipes/team/model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert load_recipe(file).text_encoder.path == "recipes/team/model"
    (tmp_path / "team/model").mkdir(parents=True)
    assert load_recipe(file, ["text_encoder.path=team/model"]).text_encoder.path == "./team/model"  # not on the Hub
    (tmp_path / "recipes/metrics.jsonl").touch()
    assert str(load_recipe(file).data.graph) == "g"  # the record of a run


def test_every_path_of_the_schema_is_known():
    def paths(section, prefix=""):
        for name, field in section.model_fields.items():
            kinds = (field.annotation, *getattr(field.annotation, "__args__", ()))
            for kind in kinds:
                if isinstance(kind, type) and issubclass(kind, Section):
                    yield from paths(kind, f"{prefix}{name}.")
            if Path in kinds:
                yield f"{prefix}{name}"

    assert set(paths(Recipe)) == set(PATHS) - {"data.shards", "text_encoder.path"}


def test_the_later_of_steps_and_epochs_counts(recipe_file):
    assert load_recipe(recipe_file, ["epochs=2"]).steps is None
    both = load_recipe(recipe_file, ["epochs=2", "steps=7"])
    assert (both.steps, both.epochs) == (7, None)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.warmpu=0.1", "did you mean warmup?"),
        ("optimiser.warmpu=0.1", "optimizer.warmpu: no such key; did you mean warmup?"),
        ("evaluation.linking.dictonary=x", "did you mean dictionary?"),
        ("zzzz=1", "known are"),
        ("masking.tokens=1.5", "less than or equal to 1"),
        ("steps=null", "either steps or epochs"),
        ("objective={contrastive: {weight: 0}, masked_language_model: {weight: 0}}", "weight 0"),
        ("batch", "is not an override"),
        ("name.x=1", "not a section"),
        ("seed=[", "not valid YAML"),
    ],
)
def test_wrong_values_get_one_line(recipe_file, override, message):
    with pytest.raises(InputError) as caught:
        load_recipe(recipe_file, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_flash_attention_needs_half_precision(recipe_file):
    chosen = "text_encoder.attention=flash_attention_2"
    assert load_recipe(recipe_file, [chosen]).precision == "bf16"
    with pytest.raises(InputError, match="flash_attention_2 needs half precision; set precision to bf16"):
        load_recipe(recipe_file, [chosen, "precision=fp32"])


@pytest.mark.parametrize("text", ["- a\n", "a: [1\n", ""])
def test_a_file_that_is_not_a_mapping_is_refused(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"recipe\.yaml"):
        load_recipe(path)


def test_a_recipe_never_changes_after_reading(recipe_file):
    with pytest.raises(ValueError, match="frozen"):
        load_recipe(recipe_file).seed = 1
    assert Recipe.model_config["extra"] == "forbid"


OLD_SPELLINGS = [
    ("optimiser.warmup=0.2", "optimizer.warmup", 0.2),
    ("optimiser={warmup: 0.2}", "optimizer.warmup", 0.2),
    ("batch.chunks=2", "batch.micro_batches", 2),
    ("batch={passages: 8, chunks: 2}", "batch.micro_batches", 2),
    ("guards.spike=4", "fault_tolerance.spike", 4),
    ("objective.contrastive.wire=bf16", "objective.contrastive.communication_dtype", "bf16"),
    ("graph_encoder.kind=linearised", "graph_encoder.kind", "linearized"),
    ("graph_encoder={names: learnt}", "graph_encoder.names", "learned"),
    ("text_encoder={path: e, compile: null}", "text_encoder.fused_layers", True),
    ("text_encoder={path: e, compile: false}", "text_encoder.fused_layers", False),
    ("text_encoder={path: e, fused_layers: null}", "text_encoder.fused_layers", True),
]


def value_at(recipe, key):
    for part in key.split("."):
        recipe = getattr(recipe, part)
    return recipe


@pytest.mark.parametrize(("override", "key", "value"), OLD_SPELLINGS)
def test_old_spellings_on_the_command_line_are_read_with_one_line_of_deprecation(
    recipe_file, caplog, override, key, value
):
    assert value_at(load_recipe(recipe_file, [override]), key) == value
    assert len(caplog.messages) == 1
    assert "is deprecated; write" in caplog.text


@pytest.mark.parametrize(("override", "key", "value"), OLD_SPELLINGS)
def test_old_spellings_in_a_file_are_read_and_overridden_in_either_spelling(recipe_file, caplog, override, key, value):
    path, _, text = override.partition("=")
    given = yaml.safe_load(text)
    for part in reversed(path.split(".")):
        given = {part: given}
    recipe_file.write_text(yaml.safe_dump(SMALLEST | given))
    assert value_at(load_recipe(recipe_file), key) == value
    assert "is deprecated; write" in caplog.text
    default = value_at(Recipe.model_validate(SMALLEST), key)
    assert value_at(load_recipe(recipe_file, [f"{key}={json.dumps(default)}"]), key) == default


def test_a_key_in_both_spellings_is_refused(recipe_file):
    recipe_file.write_text(yaml.safe_dump(SMALLEST | {"optimiser": {"warmup": 0.1}, "optimizer": {"warmup": 0.2}}))
    with pytest.raises(InputError, match="optimizer: is given twice"):
        load_recipe(recipe_file)
