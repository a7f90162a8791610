"""A lost or damaged index, made again from the tars."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bali_ds.errors import InputError
from bali_ds.files import read_json, sha256_file
from bali_ds.shards.layout import token_dtype
from bali_ds.shards.scan import TarScanner
from bali_ds.shards.store import SPLITS, Shard
from bali_ds.shards.writer import ROW_DTYPE, sample_row, write_index, write_sample_table


def reindex(path: Path) -> dict[str, Any]:
    """Write samples.npy and index.json of a directory of tars and return the index.

    Counts of what is not in the tars (documents without a passage, unlinked mentions) are taken from the build's
    report where it is there; otherwise what the tars hold is counted.

    Raises:
        InputError: there is no tar, a tar is damaged, or the tars are of different shard sets.
    """
    tars = [tar for split in SPLITS for tar in sorted(path.glob(f"{split}-*.tar"))]
    if not tars:
        raise InputError(f"{path}: holds no train-*.tar or validation-*.tar")
    description = TarScanner(tars[0]).description
    count = _Count()
    shards, tables = [], []
    for tar in tars:
        scanner = TarScanner(tar)
        for key in description | scanner.description:
            if scanner.description.get(key) != description.get(key):
                raise InputError(f"{tar}: belongs to another shard set than {tars[0].name}: {key} differs")
        samples = list(_counted(scanner, token_dtype(description["tokenizer"]["vocab_size"]), count))
        tables.append(np.array(samples, ROW_DTYPE))
        split = tar.name.split("-", 1)[0]
        shards.append(Shard(tar.name, split, len(samples), tar.stat().st_size, sha256_file(tar)))
    report = path / "report.json"
    counts = read_json(report)["counts"] if report.is_file() else count.values()
    write_sample_table(path, description, tables)
    return write_index(path, description, shards, counts)


@dataclass
class _Count:
    keys: set[str] = field(default_factory=set)
    documents: set[str] = field(default_factory=set)
    concepts: set[int] = field(default_factory=set)
    mentions: int = 0

    def values(self) -> dict[str, int]:
        return {
            "documents": len(self.documents),
            "passages": len(self.keys),
            "mentions": self.mentions,
            "linked_mentions": self.mentions,
            "concepts": len(self.concepts),
        }


def _counted(scanner: TarScanner, dtype: np.dtype[Any], count: _Count) -> Iterator[tuple[int, ...]]:
    """Yield the rows of a tar's samples and count them."""
    for scanned in scanner.samples(dtype):
        sample = scanned.sample
        if sample.key in count.keys:
            raise InputError(f"{scanner.path}: sample {sample.key} occurs twice; keep one of the shard sets")
        count.keys.add(sample.key)
        count.documents.add(str(sample.meta.get("document")))
        count.concepts.update(sample.mentions[:, 2].tolist())
        count.mentions += len(np.unique(sample.mentions[:, :2], axis=0))
        yield sample_row(sample, scanned.size)
