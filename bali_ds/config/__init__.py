"""Recipe of a run: typed sections, reading and writing."""

from bali_ds.config.objectives import ObjectiveConfig
from bali_ds.config.reading import dump_recipe, load_recipe, parse_recipe, recorded_recipe
from bali_ds.config.recipe import (
    CheckpointConfig,
    LinkingConfig,
    LoraConfig,
    OptimizerConfig,
    Recipe,
    TextEncoderConfig,
)

__all__ = [
    "CheckpointConfig",
    "LinkingConfig",
    "LoraConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "Recipe",
    "TextEncoderConfig",
    "dump_recipe",
    "load_recipe",
    "parse_recipe",
    "recorded_recipe",
]
