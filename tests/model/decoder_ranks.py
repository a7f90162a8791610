"""Trains recipes one after another on two ranks, then one step more on one rank: python decoder_ranks.py RECIPES."""

import json
import sys
from pathlib import Path
from typing import Any

from bali_ds.config import Recipe
from bali_ds.training.trainer import train
from tests.conftest import REPOSITORY
from tests.forked import run_forked


def run(recipe: Recipe) -> None:
    train(recipe)


def main() -> None:
    for values in json.loads(Path(sys.argv[1]).read_text()):
        recipe = Recipe.model_validate(values)
        run_forked(2, run, recipe)
        more: dict[str, Any] = {"steps": (recipe.steps or 0) + 1}
        if recipe.name.endswith("hpz"):  # needs the ranks of a host
            more["deepspeed"] = REPOSITORY / "ds_configs/zero3.json"
        run_forked(1, run, recipe.model_copy(update=more))


main()
