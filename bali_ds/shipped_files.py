"""Files that ship with the package: recipes, DeepSpeed configurations and the sample data set."""

from pathlib import Path

from bali_ds.errors import InputError, suggestion

_PACKAGE = Path(__file__).parent
SHIPPED = _PACKAGE / "shipped" if (_PACKAGE / "shipped").is_dir() else _PACKAGE.parent
"""Folder with ds_configs/, launch/ and shards/sample/: inside an installed package, otherwise the top of the
repository, from which setup.py copies them into the wheel."""
RECIPES = SHIPPED / "launch/recipes"
SAMPLE = SHIPPED / "shards/sample"


def find_recipe(path: Path | str) -> Path:
    """Return the file of a recipe: an existing path, or a shipped recipe by its bare name, such as "sample".

    Raises:
        InputError: it is neither.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():  # a pipe is refused by the one who reads it
        return path
    for found in (RECIPES / f"{path}.yaml", shipped_path(path)):
        if not path.is_absolute() and found.is_file():
            return found
    names = {file.relative_to(RECIPES).with_suffix("").as_posix() for file in RECIPES.rglob("*.yaml")}
    raise InputError(
        f"{path}: is not a file or the name of a recipe that ships with bali-ds; {suggestion(str(path), names)}"
    )


def find_deepspeed_config(path: Path | str) -> Path:
    """Return a DeepSpeed JSON file: a path, or a shipped file by its bare name ("zero1").

    Raises:
        InputError: a bare name that no shipped file has.
    """
    path = Path(path)
    if (path.exists() and not path.is_dir()) or path.suffix or len(path.parts) > 1:
        return shipped_path(path)
    files = {file.stem: file for file in (SHIPPED / "ds_configs").glob("*.json")}
    if path.name not in files:
        raise InputError(
            f"deepspeed: {path}: is not a file or the name of one in ds_configs; {suggestion(path.name, files)}"
        )
    return files[path.name]


def shipped_path(path: Path | str) -> Path:
    """Return a path as it is, or, if nothing is there and a file of that path ships with the package, that file."""
    path = Path(path)
    found = SHIPPED / path
    return found if not path.exists() and found.exists() else path
