"""What the command groups share: output as JSON or as text."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path


def emit(value: object, as_json: bool, readable: Callable[[], str]) -> None:
    """Print `value` as one JSON document, or the text that `readable` makes of it."""
    print(json.dumps(value, ensure_ascii=False) if as_json else readable())


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """Add --overwrite to a command that writes the directory --out."""
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the directory --out whatever it holds, not only an earlier output of this command",
    )


def interval(measure: dict[str, float], sign: str = "") -> str:
    """Return a cell of 24 characters: a share with its interval, in per cent."""
    value, low, high = (100 * measure[key] for key in ("value", "low", "high"))
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]".rjust(24)


def dictionary_beside(graph: Path) -> Path:
    """Return where the words of a graph's names are kept: made once, used again."""
    return graph.with_name(f"{graph.name}.dictionary")
