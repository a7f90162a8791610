"""What the command groups share: output as JSON or as text."""

import json
from collections.abc import Callable


def emit(value: object, as_json: bool, readable: Callable[[], str]) -> None:
    """Print `value` as one JSON document, or the text that `readable` makes of it."""
    print(json.dumps(value, ensure_ascii=False) if as_json else readable())
