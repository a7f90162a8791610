"""A run's directory belongs to one recipe."""

import pytest
import yaml

from bali_ds.errors import InputError
from bali_ds.training.run import prepare


def test_another_recipe_is_refused_and_a_default_that_came_later_is_not(sample, tmp_path):
    recipe = sample.recipe(tmp_path)
    prepare(recipe)
    written = recipe.directory / "recipe.yaml"
    older = yaml.safe_load(written.read_text())
    del older["guards"], older["objective"]["dual"]
    written.write_text(yaml.safe_dump(older))
    prepare(recipe)
    prepare(recipe.model_copy(update={"steps": 5}))
    with pytest.raises(InputError, match="was started with seed: 29, now it is 30"):
        prepare(recipe.model_copy(update={"seed": 30}))
    assert yaml.safe_load(written.read_text())["steps"] == 5
    assert (recipe.directory / "encoder" / "config.json").exists()
