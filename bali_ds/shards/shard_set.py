"""Shard set on disk: an index, a memory-mapped sample table, a table of tokenized names, and tars."""

import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bali_ds.errors import InputError
from bali_ds.files import read_json
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.shards.layout import FORMAT_VERSION, LONGEST_NAME, SAMPLE_DTYPE, member_offsets, token_dtype

SPLITS = ("train", "validation")
TABLES = ("samples.npy", "names.tokens.npy", "names.offsets.npy")
# Names become paths, URLs and arguments of a user's command, perhaps in a shell behind ssh: no special characters.
_TAR_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.tar")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_INDEX_KEYS = {
    "format_version": int, "fingerprint": str, "graph_fingerprint": str, "graph": dict, "tokenizer": dict,
    "max_tokens": int, "max_name_tokens": int, "stored_fan_out": int, "counts": dict, "shards": list,
}  # fmt: skip


@dataclass(frozen=True)
class Shard:
    """Entry of one tar in the index."""

    name: str
    split: str
    samples: int
    bytes: int
    sha256: str


class ShardSource(NamedTuple):
    """Origin of the tars of a shard set whose directory is a cache.

    Attributes:
        url: a URL or command that the user named; never read from the directory.
        limit_bytes: the largest total size of the tars in the directory.
    """

    url: str
    limit_bytes: int


class Names(NamedTuple):
    """All names of the graph, tokenized without special tokens, in the order of name ids.

    Attributes:
        tokens: uint16 or int32 [all tokens].
        offsets: int64 [num_names + 1]; name i is tokens[offsets[i]:offsets[i + 1]], never empty.
    """

    tokens: NDArray[Any]
    offsets: NDArray[np.int64]


class ShardSet:
    """A directory of shards; opening it checks versions and file sizes and reads no samples.

    Attributes:
        path: the directory.
        source: where missing tars are downloaded from; None if the directory contains all of them.
        index: the parsed index.json.
        fingerprint: a hash of everything that training reads.
        shards: the tars in order, train first.
        starts: int64 [num_shards + 1], the first sample row of each shard.
        samples: SAMPLE_DTYPE [num_samples], memory-mapped, in shard order.
        names: the tokenized names, memory-mapped.
        token_dtype: dtype of token ids in the tars and the names.
    """

    def __init__(self, path: Path, index: dict[str, Any], source: ShardSource | None = None) -> None:
        self.path = path
        self.source = source
        self.index = index
        self.fingerprint: str = index["fingerprint"]
        self.shards = _shards(path, index)
        self.starts = np.concatenate([[0], np.cumsum([shard.samples for shard in self.shards], dtype=np.int64)])
        self.token_dtype = token_dtype(int(index["tokenizer"]["vocab_size"]))
        self.samples = _column(path / "samples.npy", SAMPLE_DTYPE, int(self.starts[-1]))

    @classmethod
    def open(cls, path: Path | str, source: ShardSource | None = None) -> "ShardSet":
        """Open a directory of shards; with a source, tars may be missing.

        Raises:
            InputError: a file is missing, truncated, of another format version or inconsistent with the index.
        """
        path = Path(path)
        if not path.is_dir():
            raise InputError(f"{path}: is not a directory of shards; build one with: bali-ds shards build")
        index = read_index(path)
        try:
            shards = cls(path, index, source)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{path / 'index.json'}: is damaged: {error!r}; rebuild it: bali-ds shards index"
            ) from error
        if source is None:
            shards._check_sizes()
        return shards

    @cached_property
    def names(self) -> Names:
        """The table of tokenized names."""
        offsets = _column(self.path / "names.offsets.npy", np.dtype("<i8"), int(self.index["graph"]["names"]) + 1)
        return Names(_column(self.path / "names.tokens.npy", self.token_dtype, int(offsets[-1])), offsets)

    def check_graph(self, graph: KnowledgeGraph) -> None:
        """Check that a graph is the one that the shards were built from, and that the index has its counts.

        Raises:
            InputError: it is another graph, or counts in the index differ from those of the graph.
        """
        wanted = self.index["graph_fingerprint"]
        if graph.fingerprint != wanted:
            raise InputError(
                f"{self.path}: was built from the graph {wanted}, but {graph.path} is {graph.fingerprint}; "
                "use that graph or build the shards again"
            )
        counts = {"concepts": graph.num_concepts, "names": graph.num_names, "relations": graph.num_relations}
        for name, count in counts.items():
            if self.index["graph"].get(name) != count:
                raise InputError(
                    f"{self.path / 'index.json'}: says that the graph has {self.index['graph'].get(name)!r} {name}, "
                    f"but {graph.path} has {count}; rebuild it: bali-ds shards index"
                )

    def split(self, name: str) -> range:
        """Return the sample rows of "train" or "validation"."""
        counts = {split: sum(shard.samples for shard in self.shards if shard.split == split) for split in SPLITS}
        if name not in counts:
            raise InputError(f"split {name!r}: must be one of {', '.join(SPLITS)}")
        first = 0 if name == "train" else counts["train"]
        return range(first, first + counts[name])

    def shard_numbers(self, sample_rows: NDArray[np.int64] | int) -> NDArray[np.int64]:
        """Return the number of the shard of each sample, int64 [n]."""
        return np.searchsorted(self.starts, np.atleast_1d(sample_rows), side="right") - 1

    def key(self, sample_row: int) -> str:
        """Return the key of a sample, read from its first tar header."""
        return next(self.keys([sample_row]))

    def keys(self, sample_rows: Iterable[int]) -> Iterator[str]:
        """Yield the keys of samples; for ascending rows each tar is opened once."""
        with ExitStack() as opened:
            tar: Path | None = None
            stream: IO[bytes]
            for sample_row in sample_rows:
                if self._tar(sample_row) != tar:
                    opened.close()
                    tar = self._tar(sample_row)
                    stream = opened.enter_context(open(tar, "rb"))
                stream.seek(int(self.samples["offset"][sample_row]))
                yield stream.read(LONGEST_NAME).split(b".", 1)[0].decode("ascii", "replace")

    def arrays(self, sample_row: int) -> tuple[NDArray[Any], NDArray[np.int32], NDArray[np.int32]]:
        """Return tokens [T], mentions [M, 3] and edges [E, 3] of a sample; a simple reader for tools and tests."""
        sample = self.samples[sample_row : sample_row + 1]
        at = member_offsets(sample, self.token_dtype.itemsize)
        tar = self._tar(sample_row)
        tokens, mentions, edges = (int(sample[name][0]) for name in ("tokens", "mentions", "edges"))
        return (
            _read(tar, int(at.tokens[0]), self.token_dtype, tokens),
            _read(tar, int(at.mentions[0]), np.dtype("<i4"), mentions * 3).reshape(-1, 3),
            _read(tar, int(at.edges[0]), np.dtype("<i4"), edges * 3).reshape(-1, 3),
        )

    def _tar(self, sample_row: int) -> Path:
        if not 0 <= sample_row < len(self.samples):
            raise InputError(f"{self.path}: has no sample {sample_row}; it has {len(self.samples)} samples")
        return self.path / self.shards[int(self.shard_numbers(sample_row)[0])].name

    def _check_sizes(self) -> None:
        for shard in self.shards:
            tar = self.path / shard.name
            try:
                size = tar.stat().st_size
            except OSError as error:
                raise InputError(f"{tar}: is missing; the index lists it") from error
            if size != shard.bytes:
                raise InputError(f"{tar}: has {size} bytes, the index says {shard.bytes}; copy or build it again")


def read_index(path: Path, origin: str | None = None) -> dict[str, Any]:
    """Return index.json of a directory of shards, with keys, version and file names checked.

    Args:
        path: the directory.
        origin: the name of the index in messages; its path by default.

    Raises:
        InputError: it is missing, not JSON, of another version, lacks a key, or lists a file of another name.
    """
    index = read_json(path / "index.json")
    file = origin or str(path / "index.json")
    if not isinstance(index, dict) or index.get("format_version") != FORMAT_VERSION:
        found = index.get("format_version") if isinstance(index, dict) else None
        raise InputError(
            f"{file}: format version {found!r}, this program reads {FORMAT_VERSION}; build the shards again"
        )
    for key, kind in _INDEX_KEYS.items():
        if not isinstance(index.get(key), kind):
            raise InputError(
                f"{file}: key {key!r} is missing or not of type {kind.__name__}; rebuild it: bali-ds shards index"
            )
    _check_names(file, index)
    return index


def _check_names(file: str, index: dict[str, Any]) -> None:
    """Refuse an index that lists other files than the known tables and plain tars, before any file is opened."""
    for key in ("fingerprint", "graph_fingerprint"):  # also parts of paths in caches
        if not _SHA256.fullmatch(index[key]):
            raise InputError(f"{file}: {key} {index[key]!r} is not a SHA-256; rebuild it: bali-ds shards index")
    tables = index.get("tables", {})
    if not isinstance(tables, dict):
        raise InputError(f"{file}: key 'tables' is not a mapping; rebuild it: bali-ds shards index")
    for name, digest in tables.items():
        if name not in TABLES:
            raise InputError(f"{file}: table {name!r} is unknown; a shard set has {', '.join(TABLES)}")
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise InputError(f"{file}: table {name!r}: {digest!r} is not a SHA-256; rebuild it: bali-ds shards index")
    seen = set()
    for entry in index["shards"]:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not _TAR_NAME.fullmatch(name):
            raise InputError(f"{file}: shard name {name!r} is not a plain file name that ends in .tar")
        if name in seen:
            raise InputError(f"{file}: shard {name} is listed twice; rebuild it: bali-ds shards index")
        seen.add(name)


def _shards(path: Path, index: dict[str, Any]) -> tuple[Shard, ...]:
    shards = tuple(Shard(**entry) for entry in index["shards"])
    for shard in shards:
        if shard.split not in SPLITS or not isinstance(shard.samples, int) or shard.samples < 0:
            raise InputError(f"{path / 'index.json'}: shard {shard.name}: the split or the sample count is invalid")
    if [shard.split for shard in shards] != sorted(shard.split for shard in shards):
        raise InputError(f"{path / 'index.json'}: train shards must come before validation shards")
    return shards


def _column(file: Path, dtype: np.dtype[Any], length: int) -> NDArray[Any]:
    """Memory-map an npy file of known dtype and length."""
    try:
        column = np.load(file, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{file}: is not a valid npy file: {error}") from error
    if column.dtype != dtype or column.shape != (length,):
        raise InputError(
            f"{file}: has {column.dtype} {list(column.shape)}, expected {dtype} [{length}]; build the shards again"
        )
    return column


def _read(tar: Path, offset: int, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    if count < 0 or offset < 0 or offset + count * dtype.itemsize > tar.stat().st_size:
        raise InputError(f"{tar}: the sample table exceeds its size; rebuild it: bali-ds shards index")
    return np.fromfile(tar, dtype, count, offset=offset)
