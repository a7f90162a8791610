"""Reference pages from the code: keys of a recipe, commands, and the public Python interface."""

import argparse
import inspect
import re
from collections.abc import Iterator
from typing import Any, get_args

import bali_ds
from bali_ds.cli import parser
from bali_ds.config import Recipe
from bali_ds.config.section import Section
from bali_ds.data import webdataset_pipeline
from bali_ds.inference.encoder import Encoder


def recipe_reference() -> str:
    """Return the page of all keys of a recipe: type, default and meaning, as `bali_ds/config` defines them."""
    lines = [
        "# Keys of a recipe\n",
        "A recipe is a YAML file. Every key can be changed on the command line as `section.key=value`. Keys without a "
        "default must be given. `null` stands for no value. The [JSON schema](recipe.schema.json) lets editors "
        "complete and check recipes.\n",
    ]
    for prefix, section in _sections(Recipe):
        title = f"`{prefix}`" if prefix else "Top level"
        lines += [
            f"## {title}\n",
            f"{_plain(section.__doc__)}\n",
            "| key | type | default | meaning |",
            "| --- | --- | --- | --- |",
        ]
        for name, field in section.model_fields.items():
            if _section_of(field.annotation) is None or not _is_nested(field):
                meaning = _plain(field.description or "").replace("|", "\\|")
                lines.append(f"| `{name}` | {_type(field)} | {_default(field)} | {meaning} |")
        lines.append("")
    return "\n".join(lines)


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe."""
    return Recipe.model_json_schema()


def _sections(section: type[Section], prefix: str = "") -> Iterator[tuple[str, type[Section]]]:
    yield prefix, section
    for name, field in section.model_fields.items():
        if (inner := _section_of(field.annotation)) is not None:
            yield from _sections(inner, f"{prefix}.{name}" if prefix else name)


def _section_of(annotation: Any) -> type[Section] | None:
    candidates = (annotation, *get_args(annotation))
    return next((each for each in candidates if isinstance(each, type) and issubclass(each, Section)), None)


def _is_nested(field: Any) -> bool:
    return field.default is not None


def _type(field: Any) -> str:
    limits = [
        f"{sign} {getattr(each, name):g}"
        for each in field.metadata
        for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
        if hasattr(each, name)
    ]
    annotation = field.annotation
    options = [each for part in (annotation, *get_args(annotation)) for each in get_args(part) if isinstance(each, str)]
    if options:
        kind = ", ".join(f"`{each}`" for each in dict.fromkeys(options))
    elif (inner := _section_of(annotation)) is not None:
        kind = f"section `{inner.__name__}`"
    else:
        kind = annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
        kind = re.sub(r"typing\.Annotated\[(\w+), [^]]*\]+\)?\]", r"\1", kind)
        kind = f"`{kind.replace('pathlib.', '').replace(' | ', ' or ')}`"
    return " ".join([kind, ", ".join(limits)]).strip()


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{'null' if value is None else str(value).lower() if isinstance(value, bool) else value}`"


def command_reference() -> str:
    """Return the page of all commands: what `--help` prints."""
    lines = [
        "# Commands\n",
        "What `--help` prints. Exit status: 0 for success, 1 for a failed check, 2 for a mistake in the input, which "
        "is described in one line; `train` has more.\n",
    ]
    for name, command in _commands(parser()):
        command.formatter_class = lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=100)
        lines.append(f"## {name}\n\n```text\n{command.format_help().rstrip()}\n```\n")
    return "\n".join(lines)


def _commands(top: argparse.ArgumentParser, name: str = "bali-ds") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    groups = [action for action in top._actions if isinstance(action, argparse._SubParsersAction)]
    for group in groups:
        for word, below in group.choices.items():
            yield from _commands(below, f"{name} {word}")
    if not groups:
        yield name, top


def python_reference() -> str:
    """Return the page of the public Python interface: signatures and docstrings."""
    lines = [
        "# Python\n",
        "These names stay compatible within a major version. `import bali_ds` needs neither torch nor DeepSpeed.\n",
    ]
    public = {name: getattr(bali_ds, name) for name in bali_ds.__all__ if not name.startswith("__")}
    shown = {"load": public.pop("load"), "Encoder": Encoder, **public, "data.webdataset_pipeline": webdataset_pipeline}
    for name, value in shown.items():
        lines += [f"## bali_ds.{name}\n" if name != "Encoder" else "## Encoder\n", *_documented(value, name)]
        if isinstance(value, type):
            for method, function in inspect.getmembers(value, callable):
                if not method.startswith("_") and method in vars(value):
                    lines += [f"### {name}.{method}\n", *_documented(function, method)]
    return "\n".join(lines)


def _documented(value: Any, name: str) -> Iterator[str]:
    signature = str(inspect.signature(value)).replace("~", "")
    for module in ("numpy.ndarray", "bali_ds.", "pathlib.", "collections.abc.", "typing.", "numpy."):
        signature = signature.replace(module, module.removeprefix("numpy.") if module == "numpy.ndarray" else "")
    kind = "class " if isinstance(value, type) else ""
    yield f"```python\n{kind}{name.rpartition('.')[2]}{signature}\n```\n"
    yield from _sections_of(inspect.getdoc(value) or "")


def _sections_of(text: str) -> Iterator[str]:
    """Yield the Markdown of a docstring in Google's style: sections become lists."""
    heading = None
    for block in re.split(r"\n(?=(?:Args|Attributes|Returns|Yields|Raises):\n)", text):
        found = re.match(r"(Args|Attributes|Returns|Yields|Raises):\n", block)
        heading = found[1] if found else None
        if heading is None:
            yield f"{block.strip()}\n"
            continue
        yield f"**{heading}**\n"
        body = inspect.cleandoc(block.partition("\n")[2])
        for entry in re.split(r"\n(?=\S)", body):
            name, colon, meaning = _plain(entry).partition(": ")
            is_name = colon and " " not in name.strip("`")
            yield f"- `{name}`: {meaning}" if is_name else f"- {_plain(entry)}"
        yield ""


def _plain(text: str | None) -> str:
    return " ".join((text or "").split())
