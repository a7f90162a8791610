"""Lines of text files without the empty ones."""

from collections.abc import Iterator
from pathlib import Path

from bali_ds.errors import InputError
from bali_ds.files import numbered_lines

MOST_EMPTY_LINES = 1 << 20
"""Empty lines in a row; a compressed file of a few megabytes can hold billions."""


def filled_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end) for the lines that hold more than white space.

    Raises:
        InputError: as `numbered_lines`, or more than 1 Mi lines in a row are empty.
    """
    last = 0
    for number, line in numbered_lines(path):
        if line.strip():
            last = number
            yield number, line
        elif number - last > MOST_EMPTY_LINES:
            raise InputError(f"{path}:{number}: more than {MOST_EMPTY_LINES} empty lines in a row; check the file")
