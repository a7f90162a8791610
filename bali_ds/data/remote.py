"""Shards on a server: a mirror of each set in a directory of the node, whose tars are fetched as the order nears them.

A mirror is a directory of shards like any other, of whose tars only those in use are there. Where the others come from
is known to the processes alone: no file in a directory of shards ever says so, since anybody may have written it.
Processes of a node share a mirror: each file is fetched once, checked against the index, and renamed into place. The
tars, those on their way included, never take more than a limit: a download begins with an empty file of the size that
it will have, for which the tars used longest ago make room.
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
from bali_ds.errors import InputError
from bali_ds.files import read_json, sha256_file
from bali_ds.locations import is_remote
from bali_ds.shards.shard_set import Shard, ShardSet, ShardSource, read_index

logger = logging.getLogger(__name__)

_WAITS = (1, 2, 4, 8, 16)
_WAIT_FOR_ROOM = 0.05
_BLOCK = 1 << 20
_LARGEST_INDEX = 64 << 20
# Bytes a second, from when a download has had its time to get going: a server this slow does not get a tar across.
_SLOWEST = 1024
_SECONDS_TO_GET_GOING = 60


def cache_home() -> Path:
    """Return this node's directory for what can be fetched or computed again: $BALI_DS_CACHE or ~/.cache/bali_ds."""
    return Path(os.environ.get("BALI_DS_CACHE") or Path.home() / ".cache" / "bali_ds")


def open_shards(location: str | Path, *, cache: Path | None = None, limit_bytes: int = 64 << 30) -> ShardSet:
    """Open shards in a directory, at a URL that fsspec knows (http, s3, gs, hf, ...), or behind a `pipe:` command.

    Args:
        location: directory, URL or command.
        cache: directory of this node for mirrors of URLs; `cache_home()` by default.
        limit_bytes: what the tars of one mirror may take on disk.

    Raises:
        InputError: the location holds no shards, or cannot be reached, or serves other bytes than its index says.
    """
    if not is_remote(str(location)):
        return ShardSet.open(location)
    url = str(location).rstrip("/")
    home = (cache or cache_home()) / hashlib.sha256(url.encode()).hexdigest()[:16]
    home.mkdir(parents=True, exist_ok=True)
    with locked(home / ".lock"):
        _download(address(url, "index.json"), home / "index.json", _LARGEST_INDEX, None)
        for name, digest in read_index(home, address(url, "index.json")).get("tables", {}).items():
            if not (home / name).exists() or sha256_file(home / name) != digest:
                _download(address(url, name), home / name, None, digest)
    logger.info(
        "%s: each tar is fetched whole and checked before it is read; %s may take %.1f GiB; order and resume are exact",
        url, home, limit_bytes / 2**30,
    )  # fmt: skip
    shards = ShardSet.open(home, ShardSource(url, limit_bytes))
    largest = max((shard.bytes for shard in shards.shards), default=0)
    if largest > limit_bytes:
        raise InputError(f"{url}: its largest shard has {largest} bytes, the cache may take {limit_bytes}; allow more")
    return shards


@dataclass(frozen=True)
class Mirror:
    """Where the tars of a mirror come from."""

    path: Path
    url: str
    limit_bytes: int

    @classmethod
    def of(cls, shards: ShardSet) -> "Mirror | None":
        """Return the mirror that a shard set is; None where all its tars are its own."""
        return cls(shards.path, *shards.source) if shards.source else None

    def fetch(self, shard: Shard) -> None:
        """See to it that a tar is there, whole and as the index says, whichever process of the node fetches it.

        Raises:
            InputError: the server does not deliver it, or delivers something else.
        """
        target = self.path / shard.name
        if self._is_there(target, shard):
            return
        with locked(self._lock(shard.name)):
            if not self._is_there(target, shard):
                while not self._make_room(shard):
                    time.sleep(_WAIT_FOR_ROOM)
                _download(address(self.url, shard.name), target, shard.bytes, shard.sha256)

    @staticmethod
    def _is_there(target: Path, shard: Shard) -> bool:
        try:
            os.utime(target)
            return target.stat().st_size == shard.bytes
        except OSError:
            return False

    def _make_room(self, shard: Shard) -> bool:
        """Reserve room for a tar; False where downloads of others take all there is, until they end.

        The tars used longest ago go; a process that has one mapped keeps its pages.
        """
        with locked(self.path / ".lock"):
            # Downloads first: one that ends meanwhile is then counted twice rather than not at all.
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
            with open(_part(self.path / shard.name), "wb") as part:
                part.truncate(shard.bytes)
            return True

    def _downloads(self) -> Iterator[Path]:
        """Yield the downloads under way; what a killed process left of one goes."""
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
    """Hold the lock that a file stands for, among all processes of the node.

    Raises:
        BlockingIOError: another holds it, and `wait` is false.
    """
    with open(path, "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _part(target: Path) -> Path:
    """Where a file grows until it is whole; whoever writes it holds the lock of its target."""
    return target.with_name(f".{target.name}.part")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _download(url: str, target: Path, size: int | None, digest: str | None) -> None:
    """Publish a remote file that has the digest, or where there is none yet is JSON; try again for a while."""
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
        raise InputError(f"{problem}; given up after {len(_WAITS) + 1} attempts")
    finally:
        part.unlink(missing_ok=True)


def _copy(url: str, part: Path, size: int | None, digest: str | None) -> None:
    """Fill a file from a URL; until it is whole it keeps the size that is reserved for it."""
    found, total, begun = hashlib.sha256(), 0, time.monotonic()
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT, 0o644), "wb") as sink, open_remote(url) as source:
        read = getattr(source, "read1", source.read)  # does not wait for a whole block where it need not
        while block := read(_BLOCK):
            total += len(block)
            seconds = time.monotonic() - begun
            if seconds > _SECONDS_TO_GET_GOING and total < seconds * _SLOWEST:
                raise TimeoutError(f"only {total} bytes came in {seconds:.0f} s")
            if size is not None and total > size:
                raise ValueError(f"is longer than {size} bytes")
            found.update(block)
            sink.write(block)
        if digest is not None and found.hexdigest() != digest:
            raise ValueError(f"{total} bytes came that are not what the index says")
        sink.truncate()
        sink.flush()
        os.fsync(sink.fileno())
    if digest is None:
        read_json(part)
