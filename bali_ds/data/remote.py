"""Shards on a server, read through a cache on each node that downloads tars shortly before they are needed.

The cache of a shard set is a directory of shards that holds only some of the tars. Processes know the URL of the others
from the recipe; no file in the directory names it, since such a file may have been written by anybody. All processes of
a node share the cache: each file is downloaded once, checked against the index and renamed into place. The tars,
unfinished downloads included, never take more than a limit: a download reserves its final size first, and the least
recently used tars are removed to make room.
"""

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bali_ds.data.remote_io import address, open_remote
from bali_ds.errors import InputError, system_error
from bali_ds.files import read_json, sha256_file
from bali_ds.locations import is_remote
from bali_ds.shards.shard_index import largest_tables, read_index
from bali_ds.shards.shard_set import Shard, ShardSet, ShardSource

logger = logging.getLogger(__name__)

_WAITS = (1, 2, 4, 8, 16)
_WAIT_FOR_ROOM = 0.05
_BLOCK = 1 << 20
_LARGEST_INDEX = 64 << 20
# A download below this rate, in bytes per second after the first minute, is aborted.
_LOWEST_RATE = 1024
_WARM_UP_SECONDS = 60


def cache_home() -> Path:
    """Return the cache directory of this node: $BALI_DS_CACHE or ~/.cache/bali_ds. Its content can be made again."""
    return Path(os.environ.get("BALI_DS_CACHE") or Path.home() / ".cache" / "bali_ds")


def open_shards(location: str | Path, *, cache: Path | None = None, limit_bytes: int = 64 << 30) -> ShardSet:
    """Open shards in a directory, at a URL that fsspec knows (http, s3, gs, hf, ...), or behind a `pipe:` command.

    Args:
        location: directory, URL or command.
        cache: cache directory of this node; `cache_home()` by default.
        limit_bytes: disk space for the tars of one shard set.

    Raises:
        InputError: the location holds no shards, cannot be reached, or serves files that differ from its index.
    """
    if not is_remote(str(location)):
        return ShardSet.open(location)
    url = str(location).rstrip("/")
    home = (cache or cache_home()) / hashlib.sha256(url.encode()).hexdigest()[:16]
    with locked(home / ".lock"):
        _download(address(url, "index.json"), home / "index.json", _LARGEST_INDEX, None)
        index = read_index(home, address(url, "index.json"))
        largest = max((shard["bytes"] for shard in index["shards"]), default=0)
        if largest > limit_bytes:
            raise InputError(
                f"{url}: its largest tar has {largest} bytes, but the cache is limited to {limit_bytes} bytes"
            )
        largest_table = largest_tables(index)
        for name, digest in index.get("tables", {}).items():
            if not (home / name).exists() or sha256_file(home / name) != digest:
                _download(address(url, name), home / name, min(largest_table[name], limit_bytes), digest)
    logger.info(
        "%s: tars are downloaded and checked before they are read; %s may take %.1f GiB; order and resume are exact",
        url, home, limit_bytes / 2**30,
    )  # fmt: skip
    return ShardSet.open(home, ShardSource(url, limit_bytes))


@dataclass(frozen=True)
class Mirror:
    """The cached copy of a remote shard set.

    Attributes:
        path: its directory.
        url: where its tars are downloaded from.
        limit_bytes: disk space for its tars.
    """

    path: Path
    url: str
    limit_bytes: int

    @classmethod
    def of(cls, shards: ShardSet) -> "Mirror | None":
        """Return the mirror of a remote shard set, None for a local one."""
        return cls(shards.path, *shards.source) if shards.source else None

    def fetch(self, shard: Shard) -> None:
        """Download a tar unless it is in the cache; if another process of the node is downloading it, wait for that.

        Raises:
            InputError: the server does not deliver the file, or delivers one that differs from the index.
        """
        target = self.path / shard.name
        if self._is_cached(target, shard):
            return
        with locked(self._lock(shard.name)):
            if not self._is_cached(target, shard):
                while not self._make_room(shard):
                    time.sleep(_WAIT_FOR_ROOM)
                _download(address(self.url, shard.name), target, shard.bytes, shard.sha256)

    @staticmethod
    def _is_cached(target: Path, shard: Shard) -> bool:
        try:
            os.utime(target)
            return target.stat().st_size == shard.bytes
        except OSError:
            return False

    def _make_room(self, shard: Shard) -> bool:
        """Reserve space for a tar; return False while the downloads of other processes take all of it.

        The least recently used tars are removed; a process that has one mapped keeps its pages.
        """
        with locked(self.path / ".lock"):
            # Downloads are counted first: one that ends meanwhile is then counted twice rather than not at all.
            taken = shard.bytes + sum(
                _size(part) for part in self._downloads() if part != _part(self.path / shard.name)
            )
            tars = {tar: _size(tar) for tar in sorted(self.path.glob("*.tar"), key=lambda tar: tar.stat().st_mtime)}
            taken += sum(tars.values())
            for tar, size in tars.items():
                if taken <= self.limit_bytes:
                    break
                tar.unlink()
                taken -= size
            if taken > self.limit_bytes:
                return False
            part = _part(self.path / shard.name)
            try:
                part.write_bytes(b"")
                os.truncate(part, shard.bytes)
            except OSError as error:
                raise InputError(f"{part}: cannot be written: {system_error(error)}; free disk space") from error
            return True

    def _downloads(self) -> Iterator[Path]:
        """Yield unfinished downloads; those of killed processes are removed."""
        for part in self.path.glob(".*.tar.part"):
            try:
                with locked(self._lock(part.name[1:].removesuffix(".part")), wait=False):
                    part.unlink(missing_ok=True)
            except BlockingIOError:
                yield part

    def _lock(self, name: str) -> Path:
        return self.path / f".{name}.lock"


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a file in the cache, among all processes of the node.

    Raises:
        BlockingIOError: another holds it, and `wait` is false.
        InputError: the file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = open(path, "w")  # noqa: SIM115
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written: {system_error(error)}; free disk space, or choose another cache with "
            "BALI_DS_CACHE"
        ) from error
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _part(target: Path) -> Path:
    """Return the path of an unfinished download; its writer holds the lock of the target."""
    return target.with_name(f".{target.name}.part")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _download(url: str, target: Path, size: int, digest: str | None) -> None:
    """Download a file with retries and rename it into place; without a digest to compare, it has to be JSON."""
    part = _part(target)
    try:
        for wait in (*_WAITS, None):
            try:
                _copy(url, part, size, digest)
                os.replace(part, target)
                return
            except Exception as error:  # every backend of fsspec raises errors of its own
                problem = f"{url}: {type(error).__name__}: {error}".replace("\n", " ")
            if wait is not None:
                logger.warning("%s; trying again in %s s", problem, wait)
                time.sleep(wait)
        raise InputError(f"{problem}; gave up after {len(_WAITS) + 1} attempts")
    finally:
        part.unlink(missing_ok=True)


def _copy(url: str, part: Path, size: int, digest: str | None) -> None:
    """Download a URL into a file of reserved size, which is truncated to the size downloaded at the end."""
    found, total, begun = hashlib.sha256(), 0, time.monotonic()
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT, 0o666), "wb") as sink, open_remote(url) as source:
        read = getattr(source, "read1", source.read)  # returns what has arrived instead of waiting for a whole block
        while block := read(_BLOCK):
            total += len(block)
            seconds = time.monotonic() - begun
            if seconds > _WARM_UP_SECONDS and total < seconds * _LOWEST_RATE:
                raise TimeoutError(f"only {total} bytes arrived in {seconds:.0f} s")
            if total > size:
                raise ValueError(f"is longer than {size} bytes")
            found.update(block)
            sink.write(block)
        if digest is not None and found.hexdigest() != digest:
            raise ValueError(f"the {total} bytes that arrived differ from the index")
        sink.truncate()
        sink.flush()
        os.fsync(sink.fileno())
    if digest is None:
        read_json(part)
