"""The recipe of a run: its sections, and how it is read and written."""

from bali_ds.config.objectives import Objective
from bali_ds.config.reading import dump_recipe, load_recipe, parse_recipe, recorded_recipe
from bali_ds.config.recipe import Checkpoints, Linking, Lora, Optimizer, Recipe, TextEncoder

__all__ = [
    "Checkpoints",
    "Linking",
    "Lora",
    "Objective",
    "Optimizer",
    "Recipe",
    "TextEncoder",
    "dump_recipe",
    "load_recipe",
    "parse_recipe",
    "recorded_recipe",
]
