"""Derived shard sets: a random subset of one set, or several sets merged into one."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bali_ds.directories import published_directory
from bali_ds.errors import InputError
from bali_ds.files import open_regular
from bali_ds.randomness import derive, permute
from bali_ds.shards.layout import END_OF_ARCHIVE
from bali_ds.shards.shard_index import SPLITS
from bali_ds.shards.shard_set import ShardSet
from bali_ds.shards.tar_scanner import TarScanner, reindex
from bali_ds.shards.writer import SHARDS, shard_name, write_shard

_TABLES = ("names.tokens.npy", "names.offsets.npy")


def sample_shards(source: Path, out: Path, samples: int, seed: int, *, overwrite: bool | None = None) -> dict[str, Any]:
    """Publish a random subset of a shard set, in the original order, and return its index.

    Samples are chosen from all splits together and keep their split. Equal seeds give equal subsets.

    Raises:
        InputError: the set has fewer samples, or `out` cannot be written.
    """
    shards = ShardSet.open(source)
    total = len(shards.samples)
    if not 0 < samples <= total:
        raise InputError(f"--samples {samples}: {source} has {total} samples")
    description = TarScanner(source / shards.shards[0].name).description
    wanted = np.sort(permute(np.arange(samples), total, derive(seed, "subset")))
    with published_directory(out, SHARDS, overwrite=overwrite) as directory:
        _copy_names(source, directory)
        for split in SPLITS:
            rows = shards.split(split)
            chosen = wanted[(wanted >= rows.start) & (wanted < rows.stop)]
            size = max((shard.samples for shard in shards.shards), default=1)
            for number, start in enumerate(range(0, len(chosen), size)):
                part = chosen[start : start + size]
                write_shard(directory, shard_name(split, number), split, description, _blocks(shards, part), len(part))
        return reindex(directory)


def merge_shards(sources: Sequence[Path], out: Path, *, overwrite: bool | None = None) -> dict[str, Any]:
    """Merge shard sets of one graph, tokenizer and limits in their order, publish the result and return its index.

    Raises:
        InputError: the sets differ in graph, tokenizer or limits, or have samples of equal keys.
    """
    sets = [ShardSet.open(source) for source in sources]
    with published_directory(out, SHARDS, overwrite=overwrite) as directory:
        _copy_names(sources[0], directory)
        for split in SPLITS:
            tars = [shards.path / shard.name for shards in sets for shard in shards.shards if shard.split == split]
            for number, tar in enumerate(tars):
                shutil.copyfile(tar, directory / shard_name(split, number))
        return reindex(directory)


def _copy_names(source: Path, directory: Path) -> None:
    for name in _TABLES:
        shutil.copyfile(source / name, directory / name)


def _blocks(shards: ShardSet, sample_rows: NDArray[np.int64]) -> Iterator[bytes]:
    """Yield the bytes of samples; each ends where the next of its tar begins, the last at the end of the archive."""
    for sample_row, number in zip(sample_rows.tolist(), shards.shard_numbers(sample_rows).tolist(), strict=True):
        shard = shards.shards[number]
        start = int(shards.samples["offset"][sample_row])
        last = sample_row + 1 == shards.starts[number + 1]
        end = shard.bytes - len(END_OF_ARCHIVE) if last else int(shards.samples["offset"][sample_row + 1])
        if not 0 < start < end <= shard.bytes:
            raise InputError(
                f"{shards.path}: the sample table contradicts {shard.name}; rebuild it: bali-ds shards index"
            )
        with open_regular(shards.path / shard.name) as stream:
            stream.seek(start)
            yield stream.read(end - start)
