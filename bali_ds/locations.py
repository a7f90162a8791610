"""Where shards may lie (a directory, a URL, a command's output), and which of these a stranger may name.

A recipe that the user wrote may name anything. One that a run directory records may come from anybody: opening what
it names must neither start a program nor reach further than a plain download.
"""

from collections.abc import Iterable

from bali_ds.errors import InputError

COMMAND = "pipe:"
# fsspec knows others that read local files, chain caches and archives, or expand templates.
PLAIN_PROTOCOLS = ("https", "http", "s3", "gs", "hf")


def is_remote(location: str) -> bool:
    """Return whether a location is a URL or a command.

    Raises:
        InputError: a command does not say where the name of the file goes.
    """
    if location.startswith(COMMAND) and "{name}" not in location:
        raise InputError(f"{location}: write {{name}} where the name of the file to read goes")
    return location.startswith(COMMAND) or "://" in location


def check_recorded(locations: Iterable[str], file: object) -> None:
    """Refuse locations that are more than a directory or a plain download.

    Args:
        locations: shards that a recipe names.
        file: the recipe, for the message.

    Raises:
        InputError: a location is a command, chains protocols, or has a protocol that is not one of `PLAIN_PROTOCOLS`.
    """
    for location in locations:
        if location.startswith(COMMAND):
            problem = "is a command"
        elif "::" in location or ("://" in location and location.partition("://")[0] not in PLAIN_PROTOCOLS):
            problem = f"is not a URL of {', '.join(PLAIN_PROTOCOLS)}"
        else:
            continue
        raise InputError(
            f"{file}: data.shards: {location!r} {problem} and is not opened on the word of a run directory, which "
            "anybody may have written; if it is yours, give it on the command line as data.shards=..."
        )
