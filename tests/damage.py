"""Ways to damage a file, as functions of the directory that holds the files."""

import json
import os
import resource
import signal
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

_REORDERING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def is_harmless(text: str) -> bool:
    """Return whether a terminal shows text as one line, by the character database of Unicode."""
    return not any(
        unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(each) in _REORDERING
        for each in text
    )


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let writes beyond a size fail, as on a full disk."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


Damage = Callable[[Path], None]


def written(name: str, content: str | bytes) -> Damage:
    """Replace the content of a file."""
    return lambda root: (root / name).write_bytes(content.encode() if isinstance(content, str) else content) and None


def replaced(name: str, old: str, new: str) -> Damage:
    """Replace a part of a text file, which must have it."""

    def damage(root: Path) -> None:
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new))

    return damage


def appended(name: str, content: str) -> Damage:
    """Append text to a file."""
    return lambda root: (root / name).write_text((root / name).read_text() + content) and None


def changed(name: str, key: str, value: Any) -> Damage:
    """Set a key of a JSON file, with dots between nested keys and list positions; None deletes it."""

    def damage(root: Path) -> None:
        content = json.loads((root / name).read_text())
        *parents, last = key.split(".")
        place = content
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place[part]
        if value is None:
            del place[last]
        else:
            place[int(last) if isinstance(place, list) else last] = value
        (root / name).write_text(json.dumps(content))

    return damage


def array(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    """Change the array of an npy file."""
    return lambda root: np.save(root / name, change(np.load(root / name)))


def cut(name: str, size: int) -> Damage:
    """Keep the first bytes of a file, or all but the last ones."""
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:size]) and None


def npz(name: str) -> Damage:
    """Replace an npy file by an archive of arrays under the same name."""

    def damage(root: Path) -> None:
        with open(root / name, "wb") as stream:
            np.savez(stream, a=np.zeros(3))

    return damage


def objects(name: str) -> Damage:
    """Replace an npy file by one of pickled objects."""
    return lambda root: np.save(root / name, np.array([{"a": 1}], object), allow_pickle=True)


def header(name: str, shape: tuple[int, ...]) -> Damage:
    """Let the header of an npy file claim another shape."""

    def damage(root: Path) -> None:
        old = np.load(root / name)
        with open(root / name, "wb") as stream:
            np.lib.format.write_array_header_1_0(
                stream, {"descr": np.lib.format.dtype_to_descr(old.dtype), "fortran_order": False, "shape": shape}
            )
            stream.write(old.tobytes())

    return damage


def fifo(name: str) -> Damage:
    """Replace a file by a pipe that nobody writes to."""

    def damage(root: Path) -> None:
        (root / name).unlink()
        os.mkfifo(root / name)

    return damage


def endless(name: str) -> Damage:
    """Replace a file by a device without an end."""

    def damage(root: Path) -> None:
        (root / name).unlink()
        (root / name).symlink_to("/dev/zero")

    return damage


def missing(name: str) -> Damage:
    """Remove a file."""
    return lambda root: (root / name).unlink()


def both(*damages: Damage) -> Damage:
    """Damage in several ways."""

    def damage(root: Path) -> None:
        for each in damages:
            each(root)

    return damage
