"""Engines that rank scripts of tests train: a recipe at any ZeRO stage."""

from typing import Any

from deepspeed import DeepSpeedEngine

from bali_ds.config import Recipe
from bali_ds.model.build_model import build_aligner
from bali_ds.planning.batch_plan import plan_batches
from bali_ds.planning.run_data import RunData
from bali_ds.training.engine import build_engine, deepspeed_settings


def at_stage(recipe: Recipe, stage: int, **changes: Any) -> Recipe:
    """A recipe with another ZeRO stage, and other changes."""
    return recipe.model_copy(update={"deepspeed": recipe.deepspeed.with_name(f"zero{stage}.json")} | changes)


def engine_of(recipe: Recipe, data: RunData, world_size: int, *, persistence_threshold: int = 0) -> DeepSpeedEngine:
    """The engine of a recipe.

    ZeRO-3 keeps parameters up to `persistence_threshold` elements whole; by default almost every one of a small model.
    Its look-ahead, off here, takes minutes for small models.
    """
    settings = deepspeed_settings(recipe, plan_batches(recipe, world_size, len(data.shards.split("train"))))
    settings["zero_optimization"] |= {
        "stage3_param_persistence_threshold": persistence_threshold,
        "stage3_max_reuse_distance": 0,
    }
    return build_engine(build_aligner(recipe, 2 * data.graph.num_relations, data.shards), recipe, settings)
