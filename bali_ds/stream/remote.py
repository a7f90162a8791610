"""Shards on a server: a mirror of each set in a directory of the node, whose tars are fetched as the order nears them.

A mirror is a directory of shards like any other, with a file that says where it comes from, and of the tars only
those in use. Processes of a node share it: each file is fetched once, checked against the index, and renamed into
place; the tars used longest ago go when their total grows beyond a limit.
"""

import fcntl
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bali_ds.errors import InputError
from bali_ds.files import read_json, sha256_file, write_json
from bali_ds.shards.store import Shard, ShardSet, read_index

logger = logging.getLogger(__name__)

_SOURCE = "source.json"
_WAITS = (1, 2, 4, 8, 16)
_BLOCK = 1 << 20
_LARGEST_INDEX = 64 << 20
_SECONDS_OF_SILENCE = 30


def open_shards(location: str | Path, *, cache: Path | None = None, limit_bytes: int = 64 << 30) -> ShardSet:
    """Open shards in a directory, or at a URL that fsspec knows (http, https, s3, gs, hf, ...).

    Args:
        location: directory or URL.
        cache: directory of this node for mirrors of URLs; `~/.cache/bali_ds` by default.
        limit_bytes: what the tars of one mirror may take on disk.

    Raises:
        InputError: the location holds no shards, or cannot be reached, or serves other bytes than its index says.
    """
    if "://" not in str(location):
        return ShardSet.open(location)
    url = str(location).rstrip("/")
    home = Path(cache or Path.home() / ".cache" / "bali_ds") / hashlib.sha256(url.encode()).hexdigest()[:16]
    home.mkdir(parents=True, exist_ok=True)
    with _locked(home / ".lock"):
        _download(f"{url}/index.json", home / "index.json", _LARGEST_INDEX, None)
        for name, digest in read_index(home).get("tables", {}).items():
            if name != Path(name).name:
                raise InputError(f"{url}/index.json: table {name!r} is no plain file name")
            if not (home / name).exists() or sha256_file(home / name) != digest:
                _download(f"{url}/{name}", home / name, None, digest)
        write_json(home / _SOURCE, {"url": url, "limit_bytes": limit_bytes})
    return open_local(home)


def open_local(path: Path | str) -> ShardSet:
    """Open a directory of shards; of a mirror the tars need not be there."""
    path = Path(path)
    return ShardSet(path, read_index(path)) if (path / _SOURCE).exists() else ShardSet.open(path)


@dataclass(frozen=True)
class Mirror:
    """Where the tars of a mirror come from."""

    path: Path
    url: str
    limit_bytes: int

    @classmethod
    def at(cls, path: Path) -> "Mirror | None":
        """Return the mirror in a directory; None where it holds shards of its own."""
        if not (path / _SOURCE).exists():
            return None
        return cls(path, **read_json(path / _SOURCE))

    def fetch(self, shard: Shard) -> None:
        """See to it that a tar is there, whole and as the index says, whichever process of the node fetches it.

        Raises:
            InputError: the server does not deliver it, or delivers something else.
        """
        target = self.path / shard.name
        if self._is_there(target, shard):
            return
        with _locked(self.path / f".{shard.name}.lock"):
            if not self._is_there(target, shard):
                self._make_room(shard.bytes)
                _download(f"{self.url}/{shard.name}", target, shard.bytes, shard.sha256)

    @staticmethod
    def _is_there(target: Path, shard: Shard) -> bool:
        try:
            os.utime(target)
            return target.stat().st_size == shard.bytes
        except OSError:
            return False

    def _make_room(self, needed: int) -> None:
        """Remove the tars used longest ago; whoever has one mapped keeps its pages."""
        with _locked(self.path / ".lock"):
            tars = sorted(self.path.glob("*.tar"), key=lambda tar: tar.stat().st_mtime)
            held = needed + sum(tar.stat().st_size for tar in tars)
            for tar in tars:
                if held <= self.limit_bytes:
                    return
                held -= tar.stat().st_size
                tar.unlink()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _download(url: str, target: Path, size: int | None, digest: str | None) -> None:
    """Publish a remote file that has the digest, or where there is none yet is JSON; try again for a while."""
    for wait in (*_WAITS, None):
        try:
            _copy(url, target, size, digest)
            return
        except Exception as error:  # every backend of fsspec raises errors of its own
            problem = f"{url}: {type(error).__name__}: {error}".replace("\n", " ")
        if wait is not None:
            logger.warning("%s; trying again in %s s", problem, wait)
            time.sleep(wait)
    raise InputError(f"{problem}; given up after {len(_WAITS) + 1} attempts")


def _copy(url: str, target: Path, size: int | None, digest: str | None) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    found, total = hashlib.sha256(), 0
    try:
        with os.fdopen(descriptor, "wb") as sink, _open(url, size) as source:
            while block := source.read(_BLOCK):
                total += len(block)
                if size is not None and total > size:
                    raise ValueError(f"is longer than {size} bytes")
                found.update(block)
                sink.write(block)
        if digest is None:
            read_json(Path(name))
        elif found.hexdigest() != digest:
            raise ValueError(f"{total} bytes came that are not what the index says")
        os.replace(name, target)
    finally:
        Path(name).unlink(missing_ok=True)


def _open(url: str, size: int | None) -> Any:
    """Open a URL for reading from end to end."""
    import fsspec  # here, since a worker on local shards needs none of it

    if not url.startswith(("http://", "https://")):
        return fsspec.open(url, "rb")
    import aiohttp

    # Without limits a silent server is waited for endlessly; with a size given, one request does instead of two.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_SECONDS_OF_SILENCE, sock_read=_SECONDS_OF_SILENCE)
    files, path = fsspec.core.url_to_fs(url, client_kwargs={"timeout": timeout})
    return files.open(path, "rb", block_size=0, size=size or 1)
