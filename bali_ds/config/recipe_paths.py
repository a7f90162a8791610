"""Paths in a recipe: relative to its folder, with `~` for the home directory."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bali_ds.errors import InputError
from bali_ds.locations import COMMAND, is_hub_name

PATHS = (
    "runs",
    "deepspeed",
    "data.graph",
    "data.shards",
    "text_encoder.path",
    "evaluation.linking.dictionary",
    "evaluation.linking.queries",
)
"""Keys of a recipe whose values name files or directories, or may do so."""
_CORPUS = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*:")


def locate(values: dict[str, Any], folder: Path) -> None:
    """Make the paths in the values of a recipe relative to the working directory, in place; `~` is expanded.

    URLs, commands, names on the Hugging Face Hub and values of another type stay as they are. An encoder's directory
    that looks like a name on the Hub gets a `./`, so that it is not taken for a name on the Hub.

    Args:
        values: nested mappings as read from YAML.
        folder: what relative paths are relative to; `Path()` for the working directory.
    """
    for section, key, path in _sections(values):
        value = section[key]
        if isinstance(value, dict):  # a mixture of shards
            section[key] = {_located(each, folder, path): proportion for each, proportion in value.items()}
            if len(section[key]) < len(value):
                raise InputError(f"{path}: two keys name the same location; give each once")
        else:
            section[key] = _located(value, folder, path)


def _sections(values: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Yield the section and the key in it of each of `PATHS` that is given."""
    for path in PATHS:
        *sections, key = path.split(".")
        section: Any = values
        for name in sections:
            section = section.get(name) if isinstance(section, dict) else None
        if isinstance(section, dict) and key in section:
            yield section, key, path


def _located(value: Any, folder: Path, path: str) -> Any:
    if not isinstance(value, str) or not value or value.startswith(COMMAND) or "://" in value:
        return value
    corpus = _CORPUS.match(value) if path.endswith(".queries") else None
    prefix = corpus[0] if corpus else ""
    name = os.path.expanduser(value.removeprefix(prefix))
    if path == "text_encoder.path" and not name.startswith((".", "/")) and not (folder / name).is_dir():
        return value  # a name on the Hub
    if path == "deepspeed" and "/" not in name and not Path(name).suffix:
        return value  # a name of a file that ships with the package
    found = os.path.normpath(folder / name)
    if path == "text_encoder.path" and is_hub_name(found):
        return f"./{found}"
    return prefix + found
