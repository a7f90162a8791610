"""Samples of a shard set in plain Python: in the order of the shards, or as a pipeline of the webdataset library."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bali_ds.errors import InputError, missing_package
from bali_ds.parsing import parse_json
from bali_ds.shards.layout import ARRAY_MEMBERS, META_MEMBER
from bali_ds.shards.sample import Sample
from bali_ds.shards.shard_set import ShardSet


def read_shards(path: Path | str, split: str = "train") -> Iterator[Sample]:
    """Yield the samples of a shard directory in stored order, without shuffling, masking or sampling.

    Args:
        path: a directory that `bali-ds shards build` wrote.
        split: "train" or "validation".

    Yields:
        Sample: token ids, mentions and stored facts; ids of concepts and relations are those of the graph.

    Raises:
        InputError: the directory is not a shard set or is damaged.
    """
    shards = ShardSet.open(path)
    for row in shards.split(split):
        yield Sample(shards.key(row), *shards.arrays(row), meta={})


def webdataset_pipeline(urls: str | Sequence[str], *, shuffle: int = 0, seed: int = 0) -> Any:
    """Return a webdataset pipeline of decoded samples, for training loops that are not bali-ds'.

    It needs no index: the tars are read as streams, each by one worker of one node. Unlike the loader of bali-ds it
    gives no exact order over ranks and restarts, no sampling of neighbors and no masks.

    Args:
        urls: tars, with braces ("train-{000000..000007}.tar"): paths, URLs or `pipe:` commands.
        shuffle: size of the buffer in which samples are shuffled; 0 keeps the order.
        seed: seed of the shuffling.

    Returns:
        an iterable of dictionaries: `__key__`, `tokens` uint16 or int32 [T], `mentions` int32 [M, 3], `edges`
        int32 [E, 3], `meta`.

    Raises:
        InputError: webdataset is not installed, or, while iterating, a sample lacks one of its members.
    """
    try:
        import webdataset
    except ModuleNotFoundError as error:
        raise missing_package(error, "data") from error
    stages: list[Any] = [
        webdataset.SimpleShardList(urls),
        webdataset.split_by_node,
        webdataset.split_by_worker,
        webdataset.tarfile_to_samples(handler=webdataset.reraise_exception),
    ]
    if shuffle:
        stages.append(webdataset.shuffle(shuffle, seed=seed))
    return webdataset.DataPipeline(*stages, webdataset.map(_decoded))


def _decoded(members: dict[str, Any]) -> dict[str, Any]:
    where = f"sample {members['__key__']} of {members.get('__url__')}"
    if missing := {*ARRAY_MEMBERS, META_MEMBER} - members.keys():
        raise InputError(f"{where}: lacks {min(missing)}; is it a shard of bali-ds?")
    arrays = {
        name.removesuffix(".npy"): np.lib.format.read_array(io.BytesIO(members[name]), allow_pickle=False)
        for name in ARRAY_MEMBERS
    }
    return {"__key__": members["__key__"], **arrays, "meta": parse_json(members[META_MEMBER], where)}
