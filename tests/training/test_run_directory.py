"""The directory of a run belongs to one recipe, and its data match the recipe's encoder."""

import json
import shutil

import pytest
import yaml

from bali_ds.data.settings import StreamSettings
from bali_ds.errors import InputError
from bali_ds.training.run_directory import RunData, prepare


def test_another_recipe_is_refused_and_a_default_that_came_later_is_not(sample, tmp_path):
    recipe = sample.recipe(tmp_path)
    prepare(recipe)
    written = recipe.directory / "recipe.yaml"
    older = yaml.safe_load(written.read_text())
    del older["fault_tolerance"], older["objective"]["dual"]
    written.write_text(yaml.safe_dump(older))
    prepare(recipe)
    prepare(recipe.model_copy(update={"steps": 5}))
    with pytest.raises(InputError, match="was started with seed: 29, now it is 30"):
        prepare(recipe.model_copy(update={"seed": 30}))
    assert yaml.safe_load(written.read_text())["steps"] == 5
    assert (recipe.directory / "encoder" / "config.json").exists()


def test_passages_longer_than_the_encoder_reads_are_refused(sample, tmp_path):
    config = json.loads((sample.encoder / "config.json").read_text())
    short = tmp_path / "short"
    shutil.copytree(sample.encoder, short)

    def opened(positions, **changes):
        (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": positions}))
        return RunData.open(sample.recipe(tmp_path / "runs", text_encoder={"path": str(short), **changes}))

    shards = opened(512).shards
    assert shards.index["max_tokens"] == 128
    table = shards.sets[0].samples
    longest = int(max(row["tokens"] + 2 * row["mentions"] for row in table))
    opened(128)
    with pytest.raises(InputError, match=r"passages of up to 128 tokens, and .*short reads 127; build the shards"):
        opened(127)
    opened(longest, markers=("(", ")"))
    with pytest.raises(InputError, match=rf"up to {longest} tokens, markers included, and .* reads {longest - 1};"):
        opened(longest - 1, markers=("(", ")"))
    with pytest.raises(InputError, match=r"'\[M\]' is not in its vocabulary; use two tokens that are"):
        StreamSettings.of(sample.recipe(tmp_path, text_encoder={"path": str(short), "markers": ("(", "[M]")}))
