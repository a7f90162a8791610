"""Parts put together: which samples stand in which shard, and the shards themselves, copied block by block."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bali_ds.randomness import derive, uniform
from bali_ds.shards.part import DOCUMENT_DTYPE, BuildSettings
from bali_ds.shards.shard_set import SPLITS
from bali_ds.shards.writer import ROW_DTYPE, shard_name

_Rows = NDArray[np.void]


@dataclass(frozen=True)
class ShardPlan:
    """One shard to be written: `rows` are its samples, `blocks` where their bytes lie (part, offset, size)."""

    name: str
    split: str
    rows: _Rows
    blocks: tuple[tuple[Path, int, int], ...]

    def read(self) -> Iterator[bytes]:
        """Yield the bytes of the samples in as few and as long blocks as they allow."""
        for part, offset, size in self.blocks:
            with open(part / "samples.bin", "rb") as stream:
                stream.seek(offset)
                yield stream.read(size)


@dataclass(frozen=True)
class Assembly:
    """The whole shard set before it is written.

    Attributes:
        shards: in order, train first.
        counts: what is stored.
        dropped: documents and passages left out although they were read, by reason.
        concepts: int64 [C, 2], each concept and the passages that hold it, most first.
    """

    shards: tuple[ShardPlan, ...]
    counts: dict[str, int]
    dropped: dict[str, int]
    concepts: NDArray[np.int64]


class _Parts:
    """The tables of all parts, one after the other."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        rows = [_table(path, "rows") for path in paths]
        self.rows: _Rows = np.concatenate([np.empty(0, ROW_DTYPE), *rows])
        self.part = np.repeat(np.arange(len(paths)), [len(table) for table in rows])
        ends = [np.cumsum(table["size"]) for table in rows]
        self.offsets = np.concatenate([np.empty(0, np.int64), *ends]) - self.rows["size"]
        tables = [_table(path, "documents") for path in paths]
        self.documents: _Rows = np.concatenate([np.empty(0, DOCUMENT_DTYPE), *tables])
        self.concepts = np.concatenate([np.empty(0, np.int32), *(_table(path, "concepts") for path in paths)])

    def plan(self, name: str, split: str, members: NDArray[np.int64]) -> ShardPlan:
        """Return the shard of some samples; those that lie back to back in one part become one block."""
        part, offsets, sizes = self.part[members], self.offsets[members], self.rows["size"][members]
        broken = (part[1:] != part[:-1]) | (offsets[1:] != offsets[:-1] + sizes[:-1])
        firsts = np.flatnonzero(np.append(True, broken))
        totals = np.add.reduceat(sizes, firsts)
        pairs = zip(firsts, totals, strict=True)
        blocks = tuple((self.paths[part[at]], int(offsets[at]), int(size)) for at, size in pairs)
        return ShardPlan(name, split, self.rows[members], blocks)


def plan_shards(paths: Sequence[Path], settings: BuildSettings) -> Assembly:
    """Decide what is kept and where it stands: a function of the parts in their order alone.

    Of documents with one id the last counts, of documents with one text the first. Samples keep the order of the
    inputs; a document is in one split whole.
    """
    parts = _Parts(paths)
    dropped: Counter[str] = Counter()
    documents = _kept_documents(parts.documents, dropped)
    kept = np.repeat(documents, parts.documents["samples"])
    if settings.concept_cap:
        kept &= _under_cap(parts, kept, settings.concept_cap, dropped)
    held_out = uniform(derive("validation split", parts.documents["id"])) < settings.validation
    validation = np.repeat(held_out, parts.documents["samples"])
    shards = []
    for split in SPLITS:
        chosen = np.flatnonzero(kept & (validation == (split == "validation")))
        for number, start in enumerate(range(0, len(chosen), settings.shard_samples)):
            members = chosen[start : start + settings.shard_samples]
            shards.append(parts.plan(shard_name(split, number), split, members))
    concepts = _concept_counts(parts, kept)
    counts = _counts(parts.rows[kept], parts.documents[documents], len(concepts))
    return Assembly(tuple(shards), counts, dict(dropped), concepts)


def _table(part: Path, name: str) -> NDArray[Any]:
    return np.load(part / f"{name}.npy", allow_pickle=False)


def _kept_documents(documents: _Rows, dropped: Counter[str]) -> NDArray[np.bool_]:
    """Return bool [documents]: is it the last of its id, not withdrawn, and the first of its text?"""
    count = len(documents)
    _, firsts_from_behind = np.unique(documents["id"][::-1], return_index=True)
    last = np.zeros(count, np.bool_)
    last[count - 1 - firsts_from_behind] = True
    withdrawn = documents["withdrawn"]
    dropped["documents_replaced_or_withdrawn"] = int((~last & ~withdrawn).sum())
    kept = np.flatnonzero(last & ~withdrawn)
    _, firsts = np.unique(documents["text"][kept], return_index=True)
    dropped["documents_with_a_text_seen_before"] = len(kept) - len(firsts)
    chosen = np.zeros(count, np.bool_)
    chosen[kept[firsts]] = True
    return chosen


def _under_cap(parts: _Parts, kept: NDArray[np.bool_], cap: int, dropped: Counter[str]) -> NDArray[np.bool_]:
    """Return bool [samples]: taken in an order that the documents' ids alone decide, had one of its concepts room?"""
    bounds = np.append(0, np.cumsum(parts.rows["views"]))
    numbers = np.arange(len(parts.rows))
    first = np.repeat(np.cumsum(parts.documents["samples"]) - parts.documents["samples"], parts.documents["samples"])
    order = derive("concept cap", np.repeat(parts.documents["id"], parts.documents["samples"]), numbers - first)
    seen: Counter[int] = Counter()
    chosen = np.zeros(len(parts.rows), np.bool_)
    for number in np.argsort(order, kind="stable")[kept[np.argsort(order, kind="stable")]].tolist():
        concepts = parts.concepts[bounds[number] : bounds[number + 1]].tolist()
        if not concepts or any(seen[concept] < cap for concept in concepts):
            seen.update(concepts)
            chosen[number] = True
    dropped["passages_above_the_concept_cap"] = int((kept & ~chosen).sum())
    return chosen


def _concept_counts(parts: _Parts, kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    concepts, counts = np.unique(parts.concepts[np.repeat(kept, parts.rows["views"])], return_counts=True)
    order = np.lexsort((concepts, -counts))
    return np.stack([concepts[order].astype(np.int64), counts[order]], axis=1)


def _counts(rows: _Rows, documents: _Rows, concepts: int) -> dict[str, int]:
    return {
        "documents": len(documents),
        "documents_with_passages": int((documents["samples"] > 0).sum()),
        "passages": len(rows),
        "mentions": int(documents["mentions"].sum()),
        "linked_mentions": int(documents["linked_mentions"].sum()),
        "views": int(rows["views"].sum()),
        "concepts": concepts,
        "tokens": int(rows["tokens"].sum()),
    }
