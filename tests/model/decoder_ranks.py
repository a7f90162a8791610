"""Trains recipes one after another on two ranks, then one step more on one rank: python decoder_ranks.py RECIPES."""

import json
import sys
from pathlib import Path

from bali_ds.config import Recipe
from bali_ds.training.trainer import train
from tests.forked import run_forked


def run(recipe: Recipe) -> None:
    train(recipe)


def main() -> None:
    for values in json.loads(Path(sys.argv[1]).read_text()):
        recipe = Recipe.model_validate(values)
        run_forked(2, run, recipe)
        run_forked(1, run, recipe.model_copy(update={"steps": (recipe.steps or 0) + 1}))


main()
