"""Shard set on disk: an index, a memory-mapped sample table, a table of tokenized names, and tars."""

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.errors import InputError
from bali_ds.files import open_regular
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.npy import open_npy
from bali_ds.shards.layout import LONGEST_NAME, SAMPLE_DTYPE, member_offsets, token_dtype
from bali_ds.shards.shard_index import REBUILD, SPLITS, read_index

_BUILD = "build the shards again"
_NAMES_AT_ONCE = 1 << 20


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
        self.shards = tuple(
            Shard(**{field.name: entry[field.name] for field in fields(Shard)}) for entry in index["shards"]
        )
        self.starts = np.concatenate([[0], np.cumsum([shard.samples for shard in self.shards], dtype=np.int64)])
        self.token_dtype = token_dtype(index["tokenizer"]["vocab_size"])
        self.samples = open_npy(path / "samples.npy", SAMPLE_DTYPE, (int(self.starts[-1]),), _BUILD)

    @classmethod
    def open(cls, path: Path | str, source: ShardSource | None = None) -> "ShardSet":
        """Open a directory of shards; with a source, tars may be missing.

        Raises:
            InputError: a file is missing, truncated, of another format version or inconsistent with the index.
        """
        path = Path(path)
        if not path.is_dir():
            raise InputError(f"{path}: is not a directory of shards; build one with: bali-ds shards build")
        shards = cls(path, read_index(path), source)
        if source is None:
            shards._check_sizes()
        return shards

    @cached_property
    def names(self) -> Names:
        """The table of tokenized names; every offset and token is checked when it is opened.

        Raises:
            InputError: the table is damaged.
        """
        offsets = open_npy(self.path / "names.offsets.npy", "<i8", (self.index["graph"]["names"] + 1,), _BUILD)
        names = Names(open_npy(self.path / "names.tokens.npy", self.token_dtype, (None,), _BUILD), offsets)
        _check_table(self.path, names, self.index)
        return names

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
                    f"but {graph.path} has {count}; {REBUILD}"
                )

    def check_tokenizer(self, tokenizer: Tokenizer, source: str) -> None:
        """Check that a tokenizer is the one that the shards were built with, and that the index describes it.

        Args:
            tokenizer: the tokenizer.
            source: what it was loaded from, for messages.

        Raises:
            InputError: it is another one, or the index describes it wrongly.
        """
        stored, own = self.index["tokenizer"], tokenizer.describe()
        if stored["fingerprint"] != own["fingerprint"]:
            raise InputError(
                f"{self.path}: was built with tokenizer {stored['fingerprint'][:12]}, {source} has "
                f"{own['fingerprint'][:12]}; build the shards with --tokenizer {source}"
            )
        for key in ("vocab_size", "cls_id", "sep_id", "pad_id", "mask_id", "special_ids"):
            if stored[key] != own[key]:
                raise InputError(
                    f"{self.path / 'index.json'}: says that {key} of the tokenizer is {stored[key]}, but {source} has "
                    f"{own[key]}; {REBUILD}"
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
                    stream = opened.enter_context(open_regular(tar))
                offset = int(self.samples["offset"][sample_row])
                if not 0 <= offset <= os.fstat(stream.fileno()).st_size:
                    raise _table_exceeds(tar)
                stream.seek(offset)
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
            tar, found = self.path / shard.name, None
            with suppress(FileNotFoundError):
                found = tar.stat()  # the only request: a file server serves those of all ranks
            if found is None or not stat.S_ISREG(found.st_mode):
                raise InputError(f"{tar}: is missing; the index lists it")
            if found.st_size != shard.bytes:
                raise InputError(
                    f"{tar}: has {found.st_size} bytes, the index says {shard.bytes}; copy or build it again"
                )


def _check_table(path: Path, names: Names, index: dict[str, Any]) -> None:
    """Refuse a table of names that would be read outside of its bounds, or whose tokens are not in the vocabulary."""
    for start in range(0, names.offsets.size - 1, _NAMES_AT_ONCE):
        lengths = np.diff(names.offsets[start : start + _NAMES_AT_ONCE + 1])
        if lengths.min() < 0 or lengths.max() > index["max_name_tokens"]:
            raise InputError(
                f"{path / 'names.offsets.npy'}: a name has a negative length or one above the limit; {_BUILD}"
            )
    if names.offsets[0] != 0 or names.offsets[-1] != names.tokens.size:
        raise InputError(f"{path / 'names.offsets.npy'}: does not fit names.tokens.npy; {_BUILD}")
    for start in range(0, names.tokens.size, _NAMES_AT_ONCE):
        tokens = names.tokens[start : start + _NAMES_AT_ONCE]
        if not 0 <= int(tokens.min()) <= int(tokens.max()) < index["tokenizer"]["vocab_size"]:
            raise InputError(f"{path / 'names.tokens.npy'}: a token is outside of the vocabulary; {_BUILD}")


def _read(tar: Path, offset: int, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    if count < 0 or offset < 0 or offset + count * dtype.itemsize > tar.stat().st_size:
        raise _table_exceeds(tar)
    with open_regular(tar) as stream:
        stream.seek(offset)
        return np.frombuffer(stream.read(count * dtype.itemsize), dtype)


def _table_exceeds(tar: Path) -> InputError:
    return InputError(f"{tar}: the sample table exceeds its size; {REBUILD}")
