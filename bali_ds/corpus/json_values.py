"""JSON values of a file, one per file or one per line, and their validation."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from bali_ds.errors import InputError
from bali_ds.files import nonempty_lines

LARGEST_FILE = 1 << 28

Model = TypeVar("Model", bound=BaseModel)


def json_values(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (where, value) for each JSON value: one per line, or the whole file if its first line is not a value.

    NaN and infinities, which some tools write, are read as numbers.

    Raises:
        InputError: a value is not JSON, or a file that is one value exceeds 256 Mi characters.
    """
    lines = nonempty_lines(path)
    number, line = next(lines, (0, ""))
    first = _first(line)
    if first is None and line:
        yield f"{path}", _parse("\n".join((line, *_rest(path, lines))), f"{path}")
    elif line:
        yield f"{path}:{number}", first
        for number, line in lines:
            yield f"{path}:{number}", _parse(line, f"{path}:{number}")


def checked(model: type[Model], value: Any, where: str) -> Model:
    """Return a JSON value validated as an instance of a pydantic model.

    Raises:
        InputError: the value is invalid; `where` and the key are named.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{where}: key {key or '(top)'}: {first['msg']}") from error


def _first(line: str) -> Any | None:
    try:
        return _loaded(line)
    except (ValueError, RecursionError):
        return None


def _parse(text: str, where: str) -> Any:
    try:
        return _loaded(text)
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: contains half of a surrogate pair (\\ud800 to \\udfff); repair the file") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: is not valid JSON: {str(error)[:120]}") from error


def _loaded(text: str) -> Any:
    value = json.loads(text)
    if "\\ud" in text or "\\uD" in text:  # an escaped half of a surrogate pair cannot be encoded as UTF-8
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _rest(path: Path, lines: Iterator[tuple[int, str]]) -> Iterator[str]:
    size = 0
    for _, line in lines:
        size += len(line)
        if size > LARGEST_FILE:
            raise InputError(f"{path}: one JSON value of more than {LARGEST_FILE} characters; write one value per line")
        yield line
