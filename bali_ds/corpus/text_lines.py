"""Lines of plain or gzip-compressed text, numbered; whatever is wrong with the file becomes one clear error."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from bali_ds.errors import InputError
from bali_ds.files import open_text

LONGEST_LINE = 1 << 26


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line numbers from 1 and lines without their ends; a byte-order mark is dropped.

    Raises:
        InputError: the file cannot be opened, is truncated, is no UTF-8, or has a line above 64 Mi characters.
    """
    number = 0
    with open_text(path) as stream:
        try:
            while line := stream.readline(LONGEST_LINE):
                number += 1
                if len(line) == LONGEST_LINE:
                    raise InputError(f"{path}:{number}: a line of more than {LONGEST_LINE} characters; wrong format?")
                yield number, (line.removeprefix("\ufeff") if number == 1 else line).rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}:{number + 1}: is no UTF-8 ({error.reason}); convert the file") from error
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(
                f"{path}: compressed data end or break after line {number}; fetch the file again"
            ) from error
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
