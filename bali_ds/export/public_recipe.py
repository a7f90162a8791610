"""The recipe as an export shows it: names of files and folders, without the folders that they are in."""

from pathlib import Path
from typing import Any

from bali_ds.config import Recipe
from bali_ds.locations import COMMAND, is_on_hub, is_remote


def public_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return the values of a recipe in which each location is only its last part.

    Paths tell who trained where, and commands and URLs may hold passwords. A name on the Hugging Face Hub stays. Two
    shard sets of the same name are numbered.
    """
    values = recipe.model_dump(mode="json")
    values["runs"] = "runs"
    values["deepspeed"] = recipe.deepspeed.name
    data, encoder = values["data"], values["text_encoder"]
    data["graph"] = recipe.data.graph.name
    if isinstance(recipe.data.shards, str):
        data["shards"] = _last_part(recipe.data.shards)
    else:
        names = [_last_part(location) for location in recipe.data.shards]
        distinct = len(set(names)) == len(names)
        labels = names if distinct else [f"{name}-{number}" for number, name in enumerate(names)]
        data["shards"] = dict(zip(labels, recipe.data.shards.values(), strict=True))
    if not is_on_hub(recipe.text_encoder.path):
        encoder["path"] = Path(recipe.text_encoder.path).name
    for name, path in (values["evaluation"]["linking"] or {}).items():
        values["evaluation"]["linking"][name] = Path(path).name
    return values


def _last_part(location: str) -> str:
    if location.startswith(COMMAND):
        return "command"
    return location.partition("?")[0].rstrip("/").rpartition("/")[2] if is_remote(location) else Path(location).name
