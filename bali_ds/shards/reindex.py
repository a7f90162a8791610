"""A lost or damaged index, made again from the tars."""

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
    shards, tables = [], []
    documents: set[str] = set()
    concepts: set[int] = set()
    spans = 0
    for tar in tars:
        scanner = TarScanner(tar)
        if scanner.description != description:
            raise InputError(f"{tar}: belongs to another shard set than {tars[0].name}; keep them apart")
        rows = []
        for scanned in scanner.samples(token_dtype(description["tokenizer"]["vocab_size"])):
            rows.append(sample_row(scanned.sample, scanned.size))
            documents.add(scanned.sample.meta["document"])
            concepts.update(scanned.sample.mentions[:, 2].tolist())
            spans += len(np.unique(scanned.sample.mentions[:, :2], axis=0))
        tables.append(np.array(rows, ROW_DTYPE))
        split = tar.name.split("-", 1)[0]
        shards.append(Shard(tar.name, split, len(rows), tar.stat().st_size, sha256_file(tar)))
    report = path / "report.json"
    counts = read_json(report)["counts"] if report.is_file() else {
        "documents": len(documents),
        "passages": sum(len(table) for table in tables),
        "mentions": spans,
        "linked_mentions": spans,
        "concepts": len(concepts),
    }  # fmt: skip
    write_sample_table(path, description, tables)
    return write_index(path, description, shards, counts)
