"""Locations: names of models on the Hugging Face Hub; directory, URL or command of shards, and which are trusted.

A recipe that the user passes may name any location. The recipe recorded in a run directory may come from someone else:
opening its locations must not run a command or do more than a plain download.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from bali_ds.errors import InputError

_ON_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
COMMAND = "pipe:"
# other fsspec protocols read local files, chain caches and archives, or expand templates
PLAIN_PROTOCOLS = ("https", "http", "s3", "gs", "hf")


def is_hub_name(name: str) -> bool:
    """Return whether a model is named as on the Hugging Face Hub: `org/name` or `org/name@revision`.

    A relative directory can look the same. Whoever knows that it is one writes `./org/name`, as recipes do.
    """
    return _ON_HUB.fullmatch(name) is not None


def is_on_hub(name: str) -> bool:
    """Return whether a model is named as on the Hub and is not a directory here, as early runs may record it."""
    return is_hub_name(name) and not Path(name).exists()


def is_remote(location: str) -> bool:
    """Return whether a location is a URL or a command.

    Raises:
        InputError: a command lacks the placeholder {name}.
    """
    if location.startswith(COMMAND) and "{name}" not in location:
        raise InputError(f"{location}: the command lacks the placeholder {{name}} for the file to read")
    return location.startswith(COMMAND) or "://" in location


def check_recorded(locations: Iterable[str], file: object) -> None:
    """Check that the locations in a recorded recipe are directories or plain downloads.

    Args:
        locations: locations of shards in the recipe.
        file: path of the recipe, for the message.

    Raises:
        InputError: a location is a command, chains protocols, or has a protocol that is not in `PLAIN_PROTOCOLS`.
    """
    for location in locations:
        if location.startswith(COMMAND):
            problem = "is a command"
        elif "::" in location or ("://" in location and location.partition("://")[0] not in PLAIN_PROTOCOLS):
            problem = f"is not a plain {', '.join(PLAIN_PROTOCOLS[:-1])} or {PLAIN_PROTOCOLS[-1]} URL"
        else:
            continue
        raise InputError(
            f"{file}: data.shards: {location!r} {problem}, and the recipe of a run directory is not trusted; if this "
            "location is yours, pass it on the command line as data.shards=..."
        )
