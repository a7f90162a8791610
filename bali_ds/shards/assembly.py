"""Assembly of parts: which samples are kept, and which shard each is copied to."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bali_ds.npy import open_npy
from bali_ds.randomness import derive, uniform
from bali_ds.shards.build_settings import BuildSettings
from bali_ds.shards.part import DOCUMENT_DTYPE
from bali_ds.shards.shard_index import SPLITS
from bali_ds.shards.writer import SIZES_DTYPE, shard_name

_Records = NDArray[np.void]


@dataclass(frozen=True)
class ShardPlan:
    """One shard to write.

    Attributes:
        name: file name.
        split: "train" or "validation".
        sizes: SIZES_DTYPE, one row per sample.
        blocks: ranges of sample bytes, as (part, offset, size).
    """

    name: str
    split: str
    sizes: _Records
    blocks: tuple[tuple[Path, int, int], ...]

    def read(self) -> Iterator[bytes]:
        """Yield the bytes of the samples, one block after the other."""
        for part, offset, size in self.blocks:
            with open(part / "samples.bin", "rb") as stream:
                stream.seek(offset)
                yield stream.read(size)


@dataclass(frozen=True)
class Assembly:
    """Plan of a whole shard set.

    Attributes:
        shards: in order, train first.
        counts: what is stored.
        dropped: documents and passages that were read but are not stored, by reason.
        concepts: int64 [C, 2], each concept id and its number of passages, most frequent first.
    """

    shards: tuple[ShardPlan, ...]
    counts: dict[str, int]
    dropped: dict[str, int]
    concepts: NDArray[np.int64]


class _Parts:
    """The concatenated tables of all parts."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        sizes = [part_table(path, "rows") for path in paths]
        self.sizes: _Records = np.concatenate([np.empty(0, SIZES_DTYPE), *sizes])
        self.part = np.repeat(np.arange(len(paths)), [len(table) for table in sizes])
        ends = [np.cumsum(table["size"]) for table in sizes]
        self.offsets = np.concatenate([np.empty(0, np.int64), *ends]) - self.sizes["size"]
        tables = [part_table(path, "documents") for path in paths]
        self.documents: _Records = np.concatenate([np.empty(0, DOCUMENT_DTYPE), *tables])
        self.concept_ids = np.concatenate([np.empty(0, np.int32), *(part_table(path, "concepts") for path in paths)])

    def plan(self, name: str, split: str, samples: NDArray[np.int64]) -> ShardPlan:
        """Return the plan of a shard; samples that are adjacent in one part become one block."""
        part, offsets, sizes = self.part[samples], self.offsets[samples], self.sizes["size"][samples]
        broken = (part[1:] != part[:-1]) | (offsets[1:] != offsets[:-1] + sizes[:-1])
        firsts = np.flatnonzero(np.append(True, broken))
        totals = np.add.reduceat(sizes, firsts)
        pairs = zip(firsts, totals, strict=True)
        blocks = tuple((self.paths[part[at]], int(offsets[at]), int(size)) for at, size in pairs)
        return ShardPlan(name, split, self.sizes[samples], blocks)


def plan_shards(paths: Sequence[Path], settings: BuildSettings) -> Assembly:
    """Return which samples are kept and in which shard, as a function of the parts and their order alone.

    Of documents with equal ids the last is kept, of documents with equal texts the first. Samples keep the order of the
    inputs; all passages of a document are in the same split.
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
            samples = chosen[start : start + settings.shard_samples]
            shards.append(parts.plan(shard_name(split, number), split, samples))
    concepts = _concept_counts(parts, kept)
    counts = _counts(parts.sizes[kept], parts.documents[documents], len(concepts))
    return Assembly(tuple(shards), counts, dict(dropped), concepts)


_TABLES: dict[str, np.dtype[Any]] = {
    "rows": SIZES_DTYPE,
    "documents": DOCUMENT_DTYPE,
    "concepts": np.dtype("<i4"),
}


def part_table(part: Path, name: str) -> NDArray[Any]:
    """Map a table of a part: "rows", "documents" or "concepts".

    Raises:
        InputError: the file is damaged.
    """
    return open_npy(part / f"{name}.npy", _TABLES[name], (None,), f"remove {part} and run the command again")


def _kept_documents(documents: _Records, dropped: Counter[str]) -> NDArray[np.bool_]:
    """Return bool [documents], whether each is the last of its id, not withdrawn, and the first of its text."""
    count = len(documents)
    _, firsts_of_reversed = np.unique(documents["id"][::-1], return_index=True)
    last = np.zeros(count, np.bool_)
    last[count - 1 - firsts_of_reversed] = True
    withdrawn = documents["withdrawn"]
    dropped["documents_replaced_or_withdrawn"] = int((~last & ~withdrawn).sum())
    kept = np.flatnonzero(last & ~withdrawn)
    _, firsts = np.unique(documents["text"][kept], return_index=True)
    dropped["documents_with_a_text_seen_before"] = len(kept) - len(firsts)
    chosen = np.zeros(count, np.bool_)
    chosen[kept[firsts]] = True
    return chosen


def _under_cap(parts: _Parts, kept: NDArray[np.bool_], cap: int, dropped: Counter[str]) -> NDArray[np.bool_]:
    """Return bool [samples], whether a concept of each was below the cap, in an order set by the document ids alone."""
    bounds = np.append(0, np.cumsum(parts.sizes["views"]))
    numbers = np.arange(len(parts.sizes))
    counts = parts.documents["samples"]
    passages = numbers - np.repeat(np.cumsum(counts) - counts, counts)
    order = np.argsort(derive("concept cap", np.repeat(parts.documents["id"], counts), passages), kind="stable")
    seen: Counter[int] = Counter()
    chosen = np.zeros(len(parts.sizes), np.bool_)
    for number in order[kept[order]].tolist():
        concept_ids = parts.concept_ids[bounds[number] : bounds[number + 1]].tolist()
        if not concept_ids or any(seen[each] < cap for each in concept_ids):
            seen.update(concept_ids)
            chosen[number] = True
    dropped["passages_above_the_concept_cap"] = int((kept & ~chosen).sum())
    return chosen


def _concept_counts(parts: _Parts, kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    concept_ids, counts = np.unique(parts.concept_ids[np.repeat(kept, parts.sizes["views"])], return_counts=True)
    order = np.lexsort((concept_ids, -counts))
    return np.stack([concept_ids[order].astype(np.int64), counts[order]], axis=1)


def _counts(sizes: _Records, documents: _Records, num_concepts: int) -> dict[str, int]:
    return {
        "documents": len(documents),
        "documents_with_passages": int((documents["samples"] > 0).sum()),
        "passages": len(sizes),
        "mentions": int(documents["mentions"].sum()),
        "linked_mentions": int(documents["linked_mentions"].sum()),
        "views": int(sizes["views"].sum()),
        "concepts": num_concepts,
        "tokens": int(sizes["tokens"].sum()),
    }
