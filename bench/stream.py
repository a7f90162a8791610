"""Samples per CPU second, compared with other loaders; time to start and to resume, shuffle quality.

    python bench/stream.py [--shards SHARDS --graph GRAPH] [--batch 256] [--repeats 3]

Without shards the sample data set is built. Each loader runs in one process and one thread, like one worker; CPU
times are medians of repeats. The other loaders read the same samples and collate them in plain Python
(peers/plain.py), except torch-geometric, whose Data objects are made in advance. Writes bench/results/stream.json.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from peers import loaders
from peers.plain import PlainCollator

from bali_ds.cli import main as bali_ds
from bali_ds.data.batch_sampler import BatchSampler, RankSlice
from bali_ds.data.loader import Loader
from bali_ds.data.sampler import EpochOrder, Position
from bali_ds.data.settings import StreamSettings
from bali_ds.files import write_json
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.shards.layout import SAMPLE_DTYPE, npy_header
from bali_ds.shards.shard_set import ShardSet

ROOT = Path(__file__).parents[1]
SETTINGS = StreamSettings(seed=1, fan_out=3)


def sample_data(folder: Path) -> tuple[Path, Path]:
    """Build the sample data set; return its shards and its graph."""
    source = ROOT / "shards/sample"
    bali_ds(["graph", "build", "--rrf", str(source), "--out", str(folder / "graph")])
    build = (
        f"shards build --graph {folder}/graph --corpus pubtator:{source}/corpus.pubtator --tokenizer {source}/encoder"
    )
    bali_ds([*build.split(), "--out", str(folder / "shards")])
    return folder / "shards", folder / "graph"


def samples_a_second(epoch: Callable[[], Iterator[Any]], size: int, repeats: int) -> float:
    """Samples per second of this process's CPU time, median over epochs."""
    rates = []
    for _ in range(repeats):
        print(".", end="", file=sys.stderr, flush=True)
        begin = time.process_time()
        count = sum(1 for _ in epoch())
        rates.append(count * size / (time.process_time() - begin))
    return statistics.median(rates)


def own_epoch(shards: ShardSet, graph: KnowledgeGraph, size: int, micro_batches: int) -> Callable[[], Iterator[Any]]:
    """Epochs of the loader of this project."""
    loader = Loader(shards, graph, SETTINGS, global_batch=size, micro_batches=micro_batches)
    return lambda: islice(loader, loader.steps_per_epoch)


def worker_rate(shards: ShardSet, graph: KnowledgeGraph, size: int) -> dict[str, float]:
    """Samples per CPU second of one worker process, pipe included, and of the process that receives."""
    spent = []
    for steps in (50, 250):
        before, own = resource.getrusage(resource.RUSAGE_CHILDREN), time.process_time()
        with Loader(shards, graph, SETTINGS, global_batch=size, workers=1) as loader:
            for _ in islice(loader, steps):
                pass
            own = time.process_time() - own
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append((after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, own))
    samples = 200 * size
    return {"worker": samples / (spent[1][0] - spent[0][0]), "receiver": samples / (spent[1][1] - spent[0][1])}


def resume_seconds(shards: ShardSet, graph: KnowledgeGraph, size: int) -> dict[str, float]:
    """Wall time and CPU time from creating a loader to its first batch, by position in the epoch."""
    total = len(shards.split("train"))
    found = {}
    for share in (0.0, 0.5, 0.95):
        for workers in (0, 1):
            begin, spent = time.monotonic(), time.process_time()
            start = Position(3, int(share * (total - size)))
            with Loader(shards, graph, SETTINGS, global_batch=size, workers=workers, start=start) as loader:
                next(loader)
                found[f"{share:.0%}, {workers} workers"] = time.monotonic() - begin
            if not workers:
                found[f"{share:.0%}, CPU time"] = time.process_time() - spent
    return found


def large_set(shards: ShardSet, folder: Path, samples: int, shard_samples: int) -> ShardSet:
    """A shard set of a given number of samples with sparse tars and a complete sample table."""
    folder.mkdir()
    for name in ("names.tokens.npy", "names.offsets.npy"):
        (folder / name).symlink_to((shards.path / name).resolve())
    entries = []
    for number in range(samples // shard_samples):
        name = f"train-{number:06d}.tar"
        with open(folder / name, "wb") as stream:
            stream.truncate(shard_samples * 4608)
        entries.append(
            {"name": name, "split": "train", "samples": shard_samples, "bytes": shard_samples * 4608, "sha256": ""}
        )
    with open(folder / "samples.npy", "wb") as stream:
        stream.write(npy_header(SAMPLE_DTYPE, (len(entries) * shard_samples,)))
        for _ in entries:
            stream.write(np.zeros(shard_samples, SAMPLE_DTYPE).tobytes())
    (folder / "index.json").write_text(json.dumps({**shards.index, "shards": entries}))
    return ShardSet.open(folder)


def start_up_seconds(
    shards: ShardSet, graph: KnowledgeGraph, folder: Path, samples: int, size: int
) -> dict[str, float]:
    """Wall time to open a large set, and to find the sample rows of a step in mid-epoch."""
    path = large_set(shards, folder, samples, 4096).path
    begin = time.monotonic()
    large = ShardSet.open(path)
    opened = time.monotonic()
    BatchSampler(large, graph, SETTINGS, RankSlice(size), Position(0, samples // 2))
    sizes = [shard.samples for shard in large.shards]
    rows = EpochOrder(sizes, large.fingerprint, 0, 0).rows(np.arange(samples // 2, samples // 2 + size))
    assert np.unique(rows).size == size
    return {"open": opened - begin, "first_rows": time.monotonic() - opened}


def shuffle_quality(samples: int, shard_samples: int, window: int, batch: int) -> dict[str, float]:
    """How neighbors of the build lie in an epoch: median distance, and how often in one batch.

    Both are shares of what a full shuffle gives, so 1 is a full shuffle; beside it what webdataset's examples do,
    a buffer of 1000 after shuffled shards.
    """
    order = EpochOrder([shard_samples] * (samples // shard_samples), "quality", 0, 0, window=window)
    generator = np.random.default_rng(0)
    ways = {
        "bali-ds": order.rows(np.arange(order.size)),
        "shards and a buffer of 1000": buffered(order.size, shard_samples, 1000, generator),
        "full shuffle": generator.permutation(order.size),
    }
    found = {}
    for name, rows in ways.items():
        place = np.empty(order.size, np.int64)
        place[rows] = np.arange(order.size)
        distance = np.abs(np.diff(place))
        found[f"{name}: median distance"] = float(np.median(distance)) / (order.size * (1 - 0.5**0.5))
        found[f"{name}: in one batch"] = float((np.diff(place // batch) == 0).mean()) * order.size / batch
    return found


def buffered(size: int, shard_samples: int, buffer: int, generator: np.random.Generator) -> np.ndarray:
    """The order of one reader with permuted shards and a shuffle buffer."""
    shards = generator.permutation(size // shard_samples)
    source = (shards[:, None] * shard_samples + np.arange(shard_samples)).ravel()
    held, out = source[:buffer].copy(), np.empty(size, np.int64)
    picks = generator.integers(0, buffer, size - buffer)
    for number, (pick, row) in enumerate(zip(picks.tolist(), source[buffer:].tolist(), strict=True)):
        out[number] = held[pick]
        held[pick] = row
    out[size - buffer :] = generator.permutation(held)
    return out


def measure(shards: ShardSet, graph: KnowledgeGraph, folder: Path, size: int, repeats: int) -> dict[str, Any]:
    """All figures by name."""
    collate = PlainCollator(shards, graph, SETTINGS.fan_out)
    peers = {
        "webdataset": lambda: loaders.web_dataset(shards, size, collate),
        "MosaicML Streaming": lambda: loaders.mosaic(shards, size, collate, folder / "mds"),
        "torch-geometric, prepared": lambda: loaders.torch_geometric(shards, size, collate),
        "line by line": lambda: loaders.per_line(shards, size, collate, folder / "lines"),
    }
    epochs = {
        f"bali-ds, {micro_batches} micro-batches": own_epoch(shards, graph, size, micro_batches)
        for micro_batches in (1, 4, 8)
    }
    small = own_epoch(shards, graph, 32, 1)
    epochs |= {name: loaders.available(make) for name, make in peers.items()}
    bytes_a_sample = sum(shard.bytes for shard in shards.shards) / len(shards.samples)
    rates = {name: samples_a_second(epoch, size, repeats) for name, epoch in epochs.items() if epoch is not None}
    rates["bali-ds, steps of 32"] = samples_a_second(small, 32, repeats)
    table = {
        name: {"samples_a_second": rate, "megabytes_a_second": rate * bytes_a_sample / 1e6}
        for name, rate in rates.items()
    }
    table |= {name: {} for name, epoch in epochs.items() if epoch is None}
    return {
        "samples": len(shards.split("train")),
        "batch": size,
        "loaders": table,
        "one_worker_process": worker_rate(shards, graph, size),
        "resume_seconds": resume_seconds(shards, graph, size),
        "start_up_seconds_10_million": start_up_seconds(shards, graph, folder / "large", 10_000_000, size),
        "shuffle_quality": shuffle_quality(1 << 20, 4096, SETTINGS.window, size),
    }


def report(figures: dict[str, Any]) -> None:
    """Print all figures as one table."""
    print(f"{'CPU time, batch ' + str(figures['batch']):40} {'samples/s':>10} {'MB/s':>7}")
    for name, row in figures["loaders"].items():
        rate = f"{row['samples_a_second']:10,.0f} {row['megabytes_a_second']:7.1f}" if row else "not installed"
        print(f"  {name:38} {rate}")
    for name, rate in figures["one_worker_process"].items():
        print(f"  {'worker process: ' + name:38} {rate:10,.0f}")
    for group in ("resume_seconds", "start_up_seconds_10_million", "shuffle_quality"):
        print(group.replace("_", " "))
        for name, value in figures[group].items():
            print(f"  {name:48} {value:8.3f}")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path)
    parser.add_argument("--graph", type=Path)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = options.shards and options.graph
        paths = (options.shards, options.graph) if given else sample_data(folder)
        figures = measure(
            ShardSet.open(paths[0]), KnowledgeGraph.open(paths[1]), folder, options.batch, options.repeats
        )
    report(figures)
    write_json(ROOT / "bench/results/stream.json", figures)


if __name__ == "__main__":
    main()
