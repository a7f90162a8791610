"""Writes samples straight into a shard set, without a corpus."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bali_ds.shards.sample import Sample
from bali_ds.shards.shard_index import SPLITS
from bali_ds.shards.writer import SIZES_DTYPE, sample_sizes, shard_name, write_index, write_sample_table, write_shard


def write_samples(
    directory: Path,
    description: Mapping[str, Any],
    splits: Mapping[str, Iterable[Sample]],
    shard_samples: int,
    counts: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the samples of each split; the tables of names must exist already."""
    shards, sizes = [], []
    for split in SPLITS:
        samples = list(splits.get(split, ()))
        for number, start in enumerate(range(0, len(samples), shard_samples)):
            chosen = samples[start : start + shard_samples]
            blocks = [sample.to_bytes() for sample in chosen]
            pairs = zip(chosen, blocks, strict=True)
            sizes.append(np.array([sample_sizes(sample, len(block)) for sample, block in pairs], SIZES_DTYPE))
            shards.append(write_shard(directory, shard_name(split, number), split, description, blocks, len(chosen)))
    write_sample_table(directory, description, sizes)
    return write_index(directory, description, shards, counts)
