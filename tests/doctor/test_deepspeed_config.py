import json
from pathlib import Path

import pytest

from bali_ds.config import Recipe
from bali_ds.doctor.deepspeed_config import check_recipe, load_deepspeed_config, without_buckets
from bali_ds.doctor.deepspeed_keys import FROM_RECIPE, KNOWN, QUANTIZED, REMOVED, REMOVED_ZERO, UNSUPPORTED, ZERO
from bali_ds.errors import InputError

CONFIGS = sorted((Path(__file__).parents[2] / "ds_configs").glob("*.json"))
PRESETS = {"zero0", "zero1", "zero2", "zero3", "zero3_offload", "cpu", "slow_network", "large_model"}
INSERTED = {
    "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": 8,
    "gradient_accumulation_steps": 1,
    "gradient_clipping": 1.0,
}


class Recording(dict):
    """A dictionary that remembers every key it was asked for."""

    def __init__(self, values):
        super().__init__(values)
        self.asked = set()

    def get(self, key, default=None):
        self.asked.add(key)
        return super().get(key, default)

    def __contains__(self, key):
        self.asked.add(key)
        return super().__contains__(key)

    def __getitem__(self, key):
        self.asked.add(key)
        return super().__getitem__(key)

    def keys(self):
        return self


@pytest.fixture
def write(tmp_path):
    def write(value):
        path = tmp_path / "ds.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    return write


def recipe(**values):
    return Recipe.model_validate(
        {
            "name": "r",
            "data": {"graph": "g", "shards": "s"},
            "text_encoder": {"path": "m"},
            "steps": 1,
            "deepspeed": "ds.json",
            **values,
        }
    )


def test_all_presets_are_there():
    assert {path.stem for path in CONFIGS} == PRESETS


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_presets_pass_the_lint_and_deepspeed(path, precision):
    from deepspeed.runtime.config import DeepSpeedConfig

    values = load_deepspeed_config(path)
    check_recipe(values, recipe(precision=precision))
    precisions = {} if precision == "fp32" else {precision: {"enabled": True}}
    config = DeepSpeedConfig(values | INSERTED | precisions)
    assert config.zero_optimization_stage == values["zero_optimization"]["stage"]
    assert config.checkpoint_tag_validation_fail
    for key, value in values["zero_optimization"].items():
        if not isinstance(value, dict):
            assert getattr(config.zero_config, key.removeprefix("stage3_")) == value


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_one_rank_sends_no_gradients_and_copies_none_at_stages_1_and_2(name):
    values = load_deepspeed_config(Path(name))
    zero, alone = values["zero_optimization"], without_buckets(values, ranks=1)["zero_optimization"]
    assert without_buckets(values, ranks=2) == values
    if zero["stage"] in (1, 2):
        assert alone == zero | {"overlap_comm": False, "contiguous_gradients": False}
    else:
        assert alone == zero


def test_tables_are_deepspeeds_own_keys():
    from deepspeed.runtime.config import (
        _REMOVED_TOP_LEVEL_CONFIG_KEYS,
        _REMOVED_ZERO_CONFIG_KEYS,
        DeepSpeedConfig,
    )
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    values = Recording(INSERTED)
    DeepSpeedConfig(values)
    assert values.asked == set(KNOWN) | set(FROM_RECIPE) | set(REMOVED) | set(UNSUPPORTED)
    assert set(_REMOVED_TOP_LEVEL_CONFIG_KEYS) == set(REMOVED)
    fields = {field.alias or name: field for name, field in DeepSpeedZeroConfig.model_fields.items()}
    deprecated = {name for name, field in fields.items() if (field.json_schema_extra or {}).get("deprecated")}
    assert set(fields) - deprecated == set(ZERO)
    assert deprecated | set(_REMOVED_ZERO_CONFIG_KEYS) == set(REMOVED_ZERO)
    for name, kind in ZERO.items():
        annotation = str(fields[name].annotation)
        expected = "switch" if "bool" in annotation else "block" if "Config" in annotation else "count"
        assert kind == expected, name


@pytest.mark.parametrize("key", REMOVED)
def test_removed_features_are_named(write, key):
    with pytest.raises(InputError, match=f"{key}: was removed from DeepSpeed"):
        load_deepspeed_config(write({key: {"enabled": True}}))


@pytest.mark.parametrize("key", UNSUPPORTED)
def test_other_kinds_of_parallelism_are_refused_with_what_to_use_instead(write, key):
    with pytest.raises(InputError, match=rf"ds\.json: {key}: .*set zero_optimization\.stage to 3"):
        load_deepspeed_config(write({key: {"enabled": True}}))


@pytest.mark.parametrize("key", [*QUANTIZED, "mics_shard_size"])
def test_quantized_communication_and_mics_are_refused_with_what_to_use_instead(write, key):
    with pytest.raises(InputError, match=rf"zero_optimization\.{key}: .*zero_hpz_partition_size"):
        load_deepspeed_config(write({"zero_optimization": {"stage": 3, key: True}}))


@pytest.mark.parametrize("key", FROM_RECIPE)
def test_keys_of_the_recipe_are_refused(write, key):
    with pytest.raises(InputError, match=rf"{key}: set .* in the recipe"):
        load_deepspeed_config(write({key: 1}))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('{\n  "zero_optimization": {\n    "stage": 1,,\n  }\n}', r"ds\.json:3: is not valid JSON"),
        ('{"zero_optimization": {}, "zero_optimization": {}}', "zero_optimization: is given twice"),
        ('{"steps_per_print": Infinity}', "Infinity: is not a JSON number"),
        ('{"steps_per_print": 1e400}', "1e400: is not a JSON number"),
        ("[" * 100_000, "is not valid JSON"),
        ("[1]", "is not a JSON object"),
        ({"zero_optimisation": {"stage": 1}}, "zero_optimisation: no such key; did you mean zero_optimization"),
        ({"qqq": 1}, "qqq: no such key; DeepSpeed"),
        ({"zero_optimization": {"overlap_com": True}}, r"zero_optimization\.overlap_com: .* did you mean overlap_comm"),
        ({"zero_optimization": {"mics_shard_size": 2}}, "MiCS sharding was removed"),
        ({"zero_optimization": {"overlap_comm": "yes"}}, 'overlap_comm: must be true or false, got "yes"'),
        ({"zero_optimization": {"reduce_bucket_size": 1.5}}, r"must be a whole number, got 1\.5"),
        ({"zero_optimization": {"reduce_bucket_size": True}}, "must be a whole number, got true"),
        ({"zero_optimization": {"stage": 4}}, "must be 0, 1, 2 or 3"),
        ({"zero_optimization": 1}, "must be an object, got 1"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "needs stage 3, but the stage is 2"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, "zero_force_ds_cpu_optimizer"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "needs stage 1, 2 or 3"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "must be none or cpu"),
        ({"checkpoint": {"writer": {"type": "fast", "decoupled": True}}}, "checkpoint.writer: "),
        ({"checkpoint": {"use_node_local_storage": True}}, "remove it"),
        ({"datastates_ckpt": {}}, "remove it"),
        ({"gradient_allreduce_op": "sum"}, "must be mean"),
    ],
)
def test_mistakes_are_named_with_file_and_key(write, value, message):
    with pytest.raises(InputError, match=message) as caught:
        load_deepspeed_config(write(value))
    assert "ds.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_scientific_notation_is_a_whole_number(write):
    assert load_deepspeed_config(write('{"zero_optimization": {"stage": 1, "reduce_bucket_size": 5e8}}'))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        load_deepspeed_config(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        ({"zero_optimization": {"stage": 1, "compute_grad_norm": False}}, {}, "clipping needs the norm"),
        (
            {"data_types": {"grad_accum_dtype": "fp32"}},
            {"precision": "bf16"},
            "accumulates gradients in the recipe's precision",
        ),
    ],
)
def test_contradictions_with_the_recipe_are_refused(values, settings, message):
    with pytest.raises(InputError, match=message):
        check_recipe(values, recipe(**settings))


def test_without_contradiction_nothing_is_refused():
    check_recipe(
        {"zero_optimization": {"stage": 1, "compute_grad_norm": False}}, recipe(optimizer={"gradient_clipping": 0})
    )
    check_recipe({"data_types": {"grad_accum_dtype": "fp32"}}, recipe(precision="fp32"))
