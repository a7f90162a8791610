"""Reading of YAML recipes with command line overrides, and writing of resolved recipes."""

import difflib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from bali_ds.config.aliases import replace_old_spellings
from bali_ds.config.recipe import Recipe
from bali_ds.config.recipe_paths import locate
from bali_ds.config.section import Section
from bali_ds.errors import InputError
from bali_ds.files import read_yaml
from bali_ds.locations import check_recorded
from bali_ds.parsing import explained, parse_yaml
from bali_ds.shipped_files import SHIPPED, find_recipe, shipped_path

logger = logging.getLogger(__name__)

RECORD = "recipe.yaml"
COMPLETE = "complete.json"
"""Name of the file that marks a run as trained, exported and evaluated."""
_LENGTHS = {"steps": "epochs", "epochs": "steps"}
# A recipe.yaml next to any of these is the record of a run directory.
_BESIDE_A_RECORD = ("checkpoints", "failures", "metrics.jsonl")


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a YAML recipe whose files will be opened, and apply `key=value` overrides with dots between nested keys.

    Relative paths in the recipe are relative to its folder; those of overrides, of defaults and of the record of a run
    directory are relative to the working directory.

    Args:
        path: the file, or the bare name of a recipe that ships with the package. Such a recipe is read as if it lay in
            launch/recipes of the working directory; the encoder and linking files of the sample are those of the
            package where they are not there.
        overrides: changes.

    Raises:
        InputError: the file cannot be read or is not a YAML mapping, or a key or value is invalid (for an unknown key,
            with the nearest known one). Also if the file is the record of a run directory, which is not trusted, and
            names shards that are neither a directory nor a plain download, and no override replaces them.
    """
    file = find_recipe(path)
    folder = _folder(file) if file == Path(path) else file.parent.relative_to(SHIPPED)
    recorded = _is_record(file)
    recipe = _with_shipped_files(_validated(_read(file, overrides, Path() if recorded else folder), str(file)))
    if recorded and not any(override.startswith("data.shards=") for override in overrides):
        check_recorded(recipe.data.locations, file)
    return recipe


def _folder(file: Path) -> Path:
    """Return the folder of a recipe, relative in the working directory and absolute elsewhere, however it is named."""
    folder, here = Path(os.path.abspath(file.parent)), Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def _with_shipped_files(recipe: Recipe) -> Recipe:
    """Return the recipe with the paths of shipped files where these are not in the current folder."""
    encoder, evaluation = recipe.text_encoder, recipe.evaluation
    if (found := shipped_path(encoder.path)) != Path(encoder.path):
        encoder = encoder.model_copy(update={"path": str(found)})
    if linking := evaluation.linking:
        files = {"dictionary": shipped_path(linking.dictionary), "queries": shipped_path(linking.queries)}
        evaluation = evaluation.model_copy(update={"linking": linking.model_copy(update=files)})
    return recipe.model_copy(update={"text_encoder": encoder, "evaluation": evaluation})


def recorded_recipe(run: Path) -> Recipe:
    """Read the recipe of a run directory to compare or describe the run; its files must not be opened.

    Raises:
        InputError: as `load_recipe`, but for any location of shards.
    """
    return _validated(_read(run / RECORD), str(run / RECORD))


def parse_recipe(values: dict[str, Any], origin: str) -> Recipe:
    """Return the recipe of nested mappings, as an export stores them; `origin` names the file in errors.

    Raises:
        InputError: as `recorded_recipe`.
    """
    return _validated(_in_current_spelling(values, origin), origin)


def _is_record(path: Path) -> bool:
    return path.name == RECORD and any((path.parent / name).exists() for name in _BESIDE_A_RECORD)


def _read(path: Path, overrides: Sequence[str] = (), folder: Path | None = None) -> dict[str, Any]:
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: is not a mapping of recipe keys to values; see launch/recipes for examples")
    values = _in_current_spelling(values, str(path))
    if folder is not None:
        locate(values, folder)
    for override in overrides:
        _apply(values, override)
        # each replaces the other; in a file, both together are a mistake
        if (replaced := _LENGTHS.get(override.partition("=")[0])) and not override.endswith("=null"):
            values.pop(replaced, None)
    return values


def _in_current_spelling(values: dict[str, Any], origin: str) -> dict[str, Any]:
    try:
        replaced, notices = replace_old_spellings(values)
    except ValueError as error:
        raise InputError(f"{origin}: {error}") from None
    for notice in notices:
        logger.warning("%s: %s", origin, notice)
    return replaced


def _apply(values: dict[str, Any], override: str) -> None:
    """Set the value of one override in place; a key that names a section replaces the whole section."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"{override}: is not an override; write key=value, for example optimizer.warmup=0.1")
    given = parse_yaml(text, override)
    for part in reversed(key.split(".")):
        given = {part: given}
    given = _in_current_spelling(given, override)
    locate(given, Path())
    for _ in key.split(".")[:-1]:
        (section, given), *_ = given.items()
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise InputError(f"{override}: {section} is a value, not a section")
    values.update(given)


def _validated(values: dict[str, Any], origin: str) -> Recipe:
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        errors = error.errors()
        # a misspelled required key gives two errors; report the misspelling
        first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise InputError(f"{origin}: {key}: no such key{_suggestion(first['loc'])}") from None
        raise InputError(f"{origin}: {key + ': ' if key else ''}{explained(first)}") from None


def _suggestion(location: tuple[int | str, ...]) -> str:
    section: Any = Recipe
    for part in location[:-1]:
        section = _section_class(section.model_fields[part].annotation)
    wrong = str(location[-1])
    known = list(section.model_fields)
    nearest = difflib.get_close_matches(wrong, known, n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]}?" if nearest else f"; known are {', '.join(known)}"


def _section_class(annotation: Any) -> Any:
    candidates = (annotation, *getattr(annotation, "__args__", ()))
    return next(item for item in candidates if isinstance(item, type) and issubclass(item, Section))


def dump_recipe(recipe: Recipe) -> str:
    """Return the resolved recipe with all defaults as YAML."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
