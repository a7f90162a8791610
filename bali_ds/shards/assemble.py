"""Parts put together: which samples stand in which shard, and the shards themselves, copied block by block."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bali_ds.randomness import derive, uniform
from bali_ds.shards.part import BuildSettings
from bali_ds.shards.store import SPLITS
from bali_ds.shards.writer import ROW_DTYPE, shard_name


@dataclass(frozen=True)
class ShardPlan:
    """One shard to be written: `rows` are its samples, `blocks` where their bytes lie (part, offset, size)."""

    name: str
    split: str
    rows: NDArray[np.void]
    blocks: tuple[tuple[Path, int, int], ...]

    def read(self) -> Iterator[bytes]:
        """Yield the bytes of the samples, as few and as long blocks as they allow."""
        for part, offset, size in self.blocks:
            with open(part / "samples.bin", "rb") as stream:
                stream.seek(offset)
                yield stream.read(size)


@dataclass(frozen=True)
class Assembly:
    """The whole shard set before it is written."""

    shards: tuple[ShardPlan, ...]
    counts: dict[str, int]


def plan_shards(parts: Sequence[Path], settings: BuildSettings) -> Assembly:
    """Decide the split and place of every sample: a function of the parts in their order alone.

    Samples keep the order of the inputs; a document is in one split whole.
    """
    rows = _stack([_table(part, "rows") for part in parts], ROW_DTYPE)
    part_of = np.repeat(np.arange(len(parts)), [len(_table(part, "rows")) for part in parts])
    ends = [np.cumsum(_table(part, "rows")["size"]) for part in parts]
    offsets = (np.concatenate([np.empty(0, np.int64), *ends]) - rows["size"]).astype(np.int64)
    documents = np.concatenate([_table(part, "documents") for part in parts])
    held_out = uniform(derive("validation split", documents["id"])) < settings.validation
    validation = np.repeat(held_out, documents["samples"])
    shards = []
    for split in SPLITS:
        chosen = np.flatnonzero(validation == (split == "validation"))
        for number, start in enumerate(range(0, len(chosen), settings.shard_samples)):
            members = chosen[start : start + settings.shard_samples]
            blocks = _runs(part_of[members], offsets[members], rows["size"][members], parts)
            shards.append(ShardPlan(shard_name(split, number), split, rows[members], blocks))
    return Assembly(tuple(shards), _counts(parts, rows, documents))


def _stack(tables: Sequence[NDArray[np.void]], dtype: np.dtype[Any]) -> NDArray[np.void]:
    return np.concatenate(tables) if tables else np.empty(0, dtype)


def _table(part: Path, name: str) -> NDArray[Any]:
    return np.load(part / f"{name}.npy", allow_pickle=False)


def _runs(
    part_of: NDArray[np.int64], offsets: NDArray[np.int64], sizes: NDArray[np.int64], parts: Sequence[Path]
) -> tuple[tuple[Path, int, int], ...]:
    """Merge samples that lie back to back in one part into long blocks."""
    broken = (part_of[1:] != part_of[:-1]) | (offsets[1:] != offsets[:-1] + sizes[:-1])
    firsts = np.flatnonzero(np.concatenate([[True], broken]))
    totals = np.add.reduceat(sizes, firsts)
    return tuple((parts[part_of[at]], int(offsets[at]), int(size)) for at, size in zip(firsts, totals, strict=True))


def _counts(parts: Sequence[Path], rows: NDArray[np.void], documents: NDArray[np.void]) -> dict[str, int]:
    concepts = np.unique(np.concatenate([np.unique(_table(part, "concepts")) for part in parts]))
    return {
        "documents": len(documents),
        "documents_with_passages": int((documents["samples"] > 0).sum()),
        "passages": len(rows),
        "mentions": int(documents["mentions"].sum()),
        "linked_mentions": int(documents["linked_mentions"].sum()),
        "views": int(rows["views"].sum()),
        "concepts": len(concepts),
        "tokens": int(rows["tokens"].sum()),
    }
