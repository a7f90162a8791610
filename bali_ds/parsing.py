"""Strict parsers of JSON and YAML that anybody may have written, and validation of their values by a schema.

All JSON and YAML from outside is parsed here. What a value may be is the schema's to say: a pydantic model.
"""

import json
from collections import Counter
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from bali_ds.errors import InputError

if TYPE_CHECKING:  # imported where it is used: commands print their help without it
    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails

DEEPEST = 64
"""Levels of lists and mappings in a file."""
MOST_VALUES = 1_000_000
"""Values in a file, keys included. A schema that finds each of them wrong needs a kilobyte for each."""
_LONGEST_QUOTE = 80

Schema = TypeVar("Schema", bound="BaseModel")


def parse_json(text: str | bytes, where: str, *, non_finite: bool = False, most_values: int = MOST_VALUES) -> Any:
    """Return a JSON value.

    Args:
        text: UTF-8, with or without a byte-order mark.
        where: name of the file, and of the line if it is one of many, for messages.
        non_finite: whether NaN and infinities, which are not JSON, are read as numbers.
        most_values: values that it may hold.

    Raises:
        InputError: the text is not JSON, gives a key twice, holds a number beyond the range of float64, half of a
            surrogate pair or too many values, or is nested in more than `DEEPEST` levels.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
            raise InputError(f"{where}: {name}: is given twice; keep one")
        return values

    def constant(name: str) -> float:
        if non_finite:
            return float(name)
        raise InputError(f"{where}: {name}: is not a JSON number")

    def number(digits: str) -> float:
        value = float(digits)
        return value if abs(value) < float("inf") else constant(digits)

    try:
        decoded = text if isinstance(text, str) else text.decode("utf-8-sig")
        value = json.loads(decoded, object_pairs_hook=unique, parse_constant=constant, parse_float=number)
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: is not UTF-8 ({error.reason}); convert the file") from error
    except json.JSONDecodeError as error:
        line = f":{error.lineno}" if "\n" in decoded.rstrip("\n") else ""
        raise InputError(f"{where}{line}: is not valid JSON: {error.msg} (column {error.colno})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: is not valid JSON: {error}") from error
    _check_tree(value, where, most_values)
    return value


def parse_yaml(text: str, where: str) -> Any:
    """Return a YAML value of mappings with string keys, lists, strings, numbers, booleans and nulls.

    Raises:
        InputError: the text is not YAML, gives a key twice, has aliases or tags, holds half of a surrogate pair, or is
            nested in more than `DEEPEST` levels.
    """
    try:
        value = yaml.load(text, _PlainLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark and "\n" in text else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or type(error).__name__
        raise InputError(f"{where}{line}: is not valid YAML: {problem}") from error
    except (ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"{where}: is not valid YAML: {error}") from error
    _check_tree(value, where)
    return value


class _PlainLoader(yaml.SafeLoader):
    """Loader of the YAML that is like JSON.

    Aliases and merge keys can describe gigabytes in a few lines, so aliases are refused, and "<<" is an ordinary key.
    Dates are strings.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 (as in the base class)
        first: [
            (tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in ("null", "bool", "int", "float")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _refused(event, f"the alias *{event.anchor} is not supported; write its value")
        if getattr(event, "tag", None) not in (None, "!"):
            raise _refused(event, f"the tag {event.tag} is not supported; remove it")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        values: dict[Hashable, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refused(key, "a key is not a string")
            if key.value in values:
                raise _refused(key, f"{key.value}: is given twice; keep one")
            values[key.value] = self.construct_object(value, deep=deep)
        return values


def _refused(place: Any, problem: str) -> yaml.MarkedYAMLError:
    """Return the error for an event or node."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)


def _check_tree(value: Any, where: str, most_values: int = MOST_VALUES) -> None:
    """Refuse a value that is too deep for recursion, holds too many values, or what UTF-8 cannot encode."""
    level, count = [value], 0
    for _ in range(DEEPEST + 1):
        try:
            for each in level:
                if isinstance(each, str) and not each.isascii():
                    each.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{where}: contains half of a surrogate pair (\\ud800 to \\udfff); repair the file"
            ) from error
        if (count := count + len(level)) > most_values:
            raise InputError(f"{where}: holds more than {most_values:,} values; check that it is the right file")
        level = [child for each in level for child in _children(each)]
        if not level:
            return
    raise InputError(f"{where}: is nested in more than {DEEPEST} levels")


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, list) else []


def flattened(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of every leaf of nested mappings."""
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from flattened(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, values


def validated(schema: type[Schema], value: Any, where: str, remedy: str = "") -> Schema:
    """Return a value as an instance of a pydantic model.

    Args:
        schema: the model.
        value: what was parsed.
        where: name of the file, for messages.
        remedy: what to do, for messages.

    Raises:
        InputError: the value does not match; the message names the first wrong key.
    """
    from pydantic import ValidationError

    try:
        return schema.model_validate(value)
    except ValidationError as error:
        raise InputError(f"{where}: {mismatch(error)}{f'; {remedy}' if remedy else ''}") from None


def validated_list(schema: type[Schema], value: Any, where: str) -> list[Schema]:
    """Return a list of values as instances of a pydantic model.

    Raises:
        InputError: as `validated`.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(list[schema]).validate_python(value)  # type: ignore[valid-type]
    except ValidationError as error:
        raise InputError(f"{where}: {mismatch(error)}") from None


def mismatch(error: "ValidationError") -> str:
    """Return the first error of a validation: the key, what is wrong, and the value if that helps."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    return f"{f'key {key}: ' if key else ''}{explained(first)}"


def explained(error: "ErrorDetails") -> str:
    """Return what one error of a validation says is wrong, and the value if that helps."""
    message = "must be a mapping" if error["type"] == "model_type" else error["msg"].removeprefix("Value error, ")
    return message if error["type"] in ("missing", "value_error") else f"{message}, got {quoted(error['input'])}"


def quoted(value: Any) -> str:
    """Return a value for a message: its representation, shortened."""
    if isinstance(value, dict | list):
        return f"a {'mapping' if isinstance(value, dict) else 'list'}"
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}…"
