"""Directories that are complete or absent, and that never take the place of what this program did not write."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bali_ds.errors import InputError
from bali_ds.files import read_json, resolved, sync
from bali_ds.working_directory import PREFIX, replace_directory, workspace


@dataclass(frozen=True)
class Output:
    """A kind of directory that this program writes, and how to tell one from a directory of the user.

    Attributes:
        name: what it is, with its article.
        marker: the file that every such directory has.
        keys: keys of the marker's mapping that together no other program writes.
        files: patterns of all its files as relative paths; `*` stays within a folder, a last `**` takes a whole folder.
            A marker's own key "files" may name more.
        read: returns the content of the marker.
    """

    name: str
    marker: str
    keys: tuple[str, ...]
    files: tuple[str, ...]
    read: Callable[[Path], Any] = read_json

    def foreign_file(self, directory: Path) -> str | None:
        """Return the first file of a directory that is not part of such an output, None where there is none.

        In a directory without the marker that is whatever it holds.
        """
        content = self._marker(directory)
        if content is None:
            return min((name for name in os.listdir(directory) if not name.startswith(PREFIX)), default=None)
        listed = content.get("files")
        patterns = (self.marker, *self.files, *map(str, listed if isinstance(listed, list) else ()))
        return next((file for file in _files(directory) if not any(_matches(file, each) for each in patterns)), None)

    def _marker(self, directory: Path) -> dict[str, Any] | None:
        file = directory / self.marker
        if not file.is_file():
            return None
        try:
            content = self.read(file)
        except InputError:
            return None
        return content if isinstance(content, dict) and content.keys() >= set(self.keys) else None


@contextmanager
def published_directory(target: Path, output: Output, *, overwrite: bool | None = None) -> Iterator[Path]:
    """Yield an empty directory that takes the place of `target` when the block succeeds.

    On any error, and after a kill at any moment, `target` is as it was. A symbolic link stays, and the directory that
    it points to is written. The umask decides the permissions.

    Args:
        target: the directory to write.
        output: what is written; an older one of its kind is replaced.
        overwrite: replace a directory of any other kind as well; None where the command has no such option.

    Raises:
        InputError: `target` is a file or must not be replaced, or its parent cannot be written.
    """
    directory = resolved(target)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with workspace(directory) as space:
            check_replaceable(target, output, overwrite=overwrite)
            working = space / "new"
            working.mkdir()
            yield working
            _sync_tree(working)
            check_replaceable(target, output, overwrite=overwrite)
            replace_directory(working, directory)
            sync(directory.parent)
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror or error}") from error


def check_replaceable(target: Path, output: Output, *, overwrite: bool | None = None) -> None:
    """Check that a directory is absent or empty, or an output of this kind and nothing else.

    Raises:
        InputError: it is a file, or holds what this program did not write.
    """
    directory = resolved(target)
    try:
        if not os.path.lexists(directory):
            return
        if not directory.is_dir():
            raise InputError(f"{target}: is a file; name a directory")
        foreign = None if overwrite else output.foreign_file(directory)
    except OSError as error:
        raise InputError(f"{target}: cannot be read: {error.strerror}") from error
    if foreign is not None:
        remedy = "move it away" if overwrite is None else "name another --out, or replace everything with --overwrite"
        raise InputError(f"{target}: holds {foreign}, which is not part of {output.name} by bali-ds; {remedy}")


def _files(directory: Path) -> Iterator[str]:
    """Yield the relative paths of files and symbolic links, ascending by folder."""
    for folder, folders, files in os.walk(directory):
        folders.sort()
        place = Path(folder)
        for name in sorted([*files, *(each for each in folders if (place / each).is_symlink())]):
            if not name.startswith(PREFIX):
                yield (place / name).relative_to(directory).as_posix()
        folders[:] = [name for name in folders if not name.startswith(PREFIX)]


def _matches(file: str, pattern: str) -> bool:
    """Tell whether a relative path fits a pattern, folder by folder."""
    parts, patterns = file.split("/"), pattern.split("/")
    if patterns[-1] == "**" and len(parts) >= len(patterns):
        parts, patterns = parts[: len(patterns) - 1], patterns[:-1]
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def _sync_tree(directory: Path) -> None:
    for folder, _, files in os.walk(directory):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))
