"""Output directories that are published atomically and never replace files that bali-ds did not write."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bali_ds.errors import InputError, system_error
from bali_ds.files import read_json, resolved, sync
from bali_ds.working_directory import PREFIX, replace_directory, workspace


@dataclass(frozen=True)
class Output:
    """Kind of output directory, and how to recognize its files.

    Attributes:
        name: name of the kind with its article, for messages.
        marker: a file that every directory of this kind has.
        keys: keys of the marker file that identify this kind.
        files: glob patterns of all files as relative paths; `*` does not match "/", a final `**` matches everything
            below a folder. The marker's key "files" may list further patterns.
        read: reader of the marker file.
    """

    name: str
    marker: str
    keys: tuple[str, ...]
    files: tuple[str, ...]
    read: Callable[[Path], Any] = read_json

    def foreign_file(self, directory: Path) -> str | None:
        """Return the first file in a directory that is not part of this kind of output, None if all are.

        In a directory without a valid marker, no file is.
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
    """Yield an empty directory that replaces `target` when the block succeeds.

    After an error, or a kill at any moment, `target` is unchanged. Symbolic links are followed. Permissions follow the
    umask.

    Args:
        target: directory to write.
        output: kind of the output; an earlier output of this kind is replaced.
        overwrite: whether to replace any other directory; None if the command has no such option.

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
    except InputError:
        raise  # it may quote an error of the system that has nothing to do with the target
    except Exception as error:
        if problem := system_error(error):
            raise InputError(f"{target}: cannot be written: {problem}") from error
        raise


def check_replaceable(target: Path, output: Output, *, overwrite: bool | None = None) -> None:
    """Check that a directory is missing, empty, or holds only an output of this kind.

    Raises:
        InputError: it is a file, or holds other files.
    """
    directory = resolved(target)
    try:
        if not os.path.lexists(directory):
            return
        if not directory.is_dir():
            raise InputError(f"{target}: is a file; pass a directory")
        foreign = None if overwrite else output.foreign_file(directory)
    except OSError as error:
        raise InputError(f"{target}: cannot be read: {system_error(error)}") from error
    if foreign is not None:
        remedy = "move it away" if overwrite is None else "name another --out, or replace everything with --overwrite"
        raise InputError(f"{target}: holds {foreign}, which is not part of {output.name} by bali-ds; {remedy}")


def _files(directory: Path) -> Iterator[str]:
    """Yield the relative paths of all files and symbolic links, in order."""
    for folder, folders, files in os.walk(directory):
        folders.sort()
        base = Path(folder)
        for name in sorted([*files, *(each for each in folders if (base / each).is_symlink())]):
            if not name.startswith(PREFIX):
                yield (base / name).relative_to(directory).as_posix()
        folders[:] = [name for name in folders if not name.startswith(PREFIX)]


def _matches(file: str, pattern: str) -> bool:
    """Return whether a relative path matches a pattern, folder by folder."""
    parts, patterns = file.split("/"), pattern.split("/")
    if patterns[-1] == "**" and len(parts) >= len(patterns):
        parts, patterns = parts[: len(patterns) - 1], patterns[:-1]
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def _sync_tree(directory: Path) -> None:
    for folder, _, files in os.walk(directory):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))
