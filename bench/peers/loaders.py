"""The other ways to read the same samples; each is a function that yields batches of one epoch."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bali_ds.shards.shard_set import ShardSet
from peers.plain import PlainCollator, Sample

Collate = Callable[[list[Sample]], Any]
Epoch = Callable[[], Iterator[Any]]


def all_samples(shards: ShardSet) -> list[Sample]:
    """Every training sample as arrays."""
    return [shards.arrays(row) for row in shards.split("train")]


def batches(samples: Iterator[Sample], size: int, collate: Collate) -> Iterator[Any]:
    """Collate whole batches."""
    held: list[Sample] = []
    for sample in samples:
        held.append(sample)
        if len(held) == size:
            yield collate(held)
            held = []


def web_dataset(shards: ShardSet, size: int, collate: Collate) -> Epoch:
    """The library's own pipeline on the same tars: shuffle, decode, batch."""
    import webdataset

    urls = [str(shards.path / shard.name) for shard in shards.shards if shard.split == "train"]

    def epoch() -> Iterator[Any]:
        pipeline = webdataset.WebDataset(urls, shardshuffle=100).shuffle(1000).decode()
        tuples = pipeline.to_tuple("tokens.npy", "mentions.npy", "edges.npy")
        return iter(tuples.batched(size, collation_fn=collate, partial=False))

    return epoch


def mosaic(shards: ShardSet, size: int, collate: Collate, folder: Path) -> Epoch:
    """MosaicML Streaming on the same samples as MDS."""
    from streaming import MDSWriter, StreamingDataset

    columns = {"tokens": "ndarray:uint16", "mentions": "ndarray:int32", "edges": "ndarray:int32"}
    with MDSWriter(out=str(folder), columns=columns) as writer:
        for tokens, mentions, edges in all_samples(shards):
            # An array without elements cannot be read back; one row of -1 stands for it.
            blank = np.full((1, 3), -1, np.int32)
            writer.write({"tokens": tokens.astype(np.uint16), "mentions": mentions if len(mentions) else blank,
                          "edges": edges if len(edges) else blank})  # fmt: skip
    dataset = StreamingDataset(local=str(folder), shuffle=True, batch_size=size)

    def epoch() -> Iterator[Any]:
        samples = ((item["tokens"], item["mentions"], item["edges"]) for item in dataset)
        cleaned = (
            (tokens, mentions[mentions[:, 0] >= 0], edges[edges[:, 0] >= 0]) for tokens, mentions, edges in samples
        )
        return batches(cleaned, size, collate)

    return epoch


def torch_geometric(shards: ShardSet, size: int, collator: PlainCollator) -> Epoch:
    """torch-geometric's DataLoader over Data objects made beforehand and held in memory: nothing drawn or masked."""
    from torch_geometric.data import Data
    from torch_geometric.loader import DataLoader

    data = []
    for sample in all_samples(shards):
        ready = collator([sample])
        data.append(
            Data(
                num_nodes=len(ready["names"]),
                edge_index=ready["edge_index"].long(),
                edge_attr=ready["relations"],
                tokens=ready["input_ids"][0],
                labels=ready["labels"][0],
                name_tokens=ready["names"][ready["names"] != collator.tokenizer["pad_id"]],
            )
        )
    return lambda: iter(DataLoader(data, batch_size=size, shuffle=True, drop_last=True))


def per_line(shards: ShardSet, size: int, collate: Collate, folder: Path) -> Epoch:
    """One text file a document, one passage a line: a scan over the files, open, seek, read a line, split, parse."""
    folder.mkdir()
    paths: list[str] = []
    line_offsets: list[list[int]] = []
    for row, (tokens, mentions, edges) in zip(shards.split("train"), all_samples(shards), strict=True):
        path = str(folder / shards.key(row).rsplit("_", 1)[0])
        if not paths or paths[-1] != path:
            paths.append(path)
            line_offsets.append([])
        with open(path, "a") as stream:
            line_offsets[-1].append(stream.tell())
            stream.write(
                "\t".join(",".join(map(str, part.ravel().tolist())) for part in (tokens, mentions, edges)) + "\n"
            )
    counts = [len(offsets) for offsets in line_offsets]

    def get(index: int) -> Sample:
        file = 0
        while index >= counts[file]:
            index -= counts[file]
            file += 1
        with open(paths[file], encoding="utf-8") as stream:
            stream.seek(line_offsets[file][index])
            parts = stream.readline().rstrip("\n").split("\t")
        values = [np.array([int(value) for value in part.split(",") if value]) for part in parts]
        return values[0], values[1].reshape(-1, 3), values[2].reshape(-1, 3)

    def epoch() -> Iterator[Any]:
        order = random.sample(range(sum(counts)), sum(counts))
        return batches(map(get, order), size, collate)

    return epoch


def available(make: Callable[[], Epoch]) -> Epoch | None:
    """A peer, or None where its library is not installed."""
    try:
        return make()
    except ImportError:
        return None
