"""A shard set of 100 million samples: time and memory to open it, time to order it, and how well the order mixes.

    python bench/index.py [--samples 100e6] [--ranks 1024] [--folder DIR]

Index, sample table and names have the format of real ones, and tars are sparse files of the right size: 2.5 GB in DIR
while it runs. A process of its own opens the set as a rank does; times are processor seconds. The build over the files
of PubMed's baseline is simulated with the rates of bench/results/shards.json. Writes bench/results/index.json.
"""

import argparse
import heapq
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

from bali_ds.cli import main as bali_ds
from bali_ds.data.batch_sampler import BatchSampler, RankSlice
from bali_ds.data.mixture import Mixture
from bali_ds.data.sampler import EpochOrder, Position, SampleOrder, rank_offsets
from bali_ds.data.settings import StreamSettings
from bali_ds.files import write_json
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.shards.layout import SAMPLE_DTYPE, npy_header
from bali_ds.shards.shard_index import index_fingerprint
from bali_ds.shards.shard_set import ShardSet

ROOT = Path(__file__).parents[1]
SETTINGS = StreamSettings(seed=29)
SHARD_SAMPLES = 4096  # the default of `bali-ds shards build`
BYTES = 4608  # of a sample of the sample data set
PER_RANK = 16
# PubMed's baseline: 1,300 files of 30,000 records each, of which some are far larger or smaller than others.
FILES, RECORDS, DEVIATION = 1_300, 30_000, 0.3
DISK_RATE = 200e6  # assumed: bytes per second of the file system when shards are assembled


def main() -> None:
    """Write the set, measure it, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=float, default=100e6)
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--opened", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.opened:
        print(json.dumps(opened(options.opened, options.ranks)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        shards = large_set(folder, int(options.samples) // SHARD_SAMPLES)
        command = [sys.executable, __file__, "--opened", shards, "--ranks", str(options.ranks)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        figures: dict[str, Any] = {"opened": json.loads(done.stdout)}
        order = epoch_order(shards)
    figures["mixing"] = [mixing(order, batch) for batch in (1_024, PER_RANK * options.ranks)]
    figures["storage"] = storage(order.size)
    figures["build"] = [simulated_build(cores) for cores in (1, 16, 64, 256)]
    for name, value in figures.items():
        for row in value if isinstance(value, list) else [value]:
            print(f"{name:>8}  " + ", ".join(f"{key} {number:,.5g}" for key, number in row.items()))
    write_json(ROOT / "bench/results/index.json", figures)


def large_set(folder: Path, count: int) -> Path:
    """Write a set of `count` tars beside the sample data set, whose graph and names it shares; return its directory."""
    source, out = ROOT / "shards/sample", folder / "shards"
    bali_ds(["graph", "build", "--rrf", str(source), "--out", str(folder / "graph")])
    corpus, small = f"pubtator:{source}/corpus.pubtator", folder / "small"
    build = f"shards build --graph {folder}/graph --corpus {corpus} --tokenizer {source}/encoder --out {small}"
    bali_ds(build.split())
    out.mkdir()
    index = json.loads((small / "index.json").read_text())
    for name in ("names.tokens.npy", "names.offsets.npy"):
        (out / name).symlink_to(small / name)
    size = SHARD_SAMPLES * BYTES + 1024
    names = [f"train-{number:06d}.tar" for number in range(count)]
    for name in names:
        with open(out / name, "wb") as stream:
            stream.truncate(size)
    entry = {"split": "train", "samples": SHARD_SAMPLES, "bytes": size, "sha256": "0" * 64}
    table = np.zeros(SHARD_SAMPLES, SAMPLE_DTYPE)
    table["offset"], table["tokens"], table["mentions"] = np.arange(SHARD_SAMPLES) * BYTES, 128, 8
    with open(out / "samples.npy", "wb") as stream:
        stream.write(npy_header(SAMPLE_DTYPE, (count * SHARD_SAMPLES,)))
        for _ in names:
            stream.write(table.tobytes())
    index["shards"] = [{"name": name, **entry} for name in names]
    index["fingerprint"] = index_fingerprint(index)
    (out / "index.json").write_text(json.dumps(index))
    return out


def opened(path: Path, ranks: int) -> dict[str, float]:
    """Open a set as the last of many ranks; return seconds, private memory, and seconds of its order."""
    graph = KnowledgeGraph.open(path.parent / "graph")
    before = private_bytes()
    begin = time.process_time()
    mixture = Mixture.of(ShardSet.open(path))
    sampler = BatchSampler(mixture, graph, SETTINGS, RankSlice(PER_RANK * ranks, 1, ranks - 1, ranks), Position())
    found = {"shards": len(mixture.shards), "samples": mixture.size("train"), "open s": time.process_time() - begin}
    found["open private MB"] = (private_bytes() - before) / 1e6
    begin = time.process_time()
    sampler._indices([1000])
    found["first step ms"] = 1e3 * (time.process_time() - begin)
    begin = time.process_time()
    for step in range(1001, 1101):
        sampler._indices([step])
    found["a step ms"] = 10 * (time.process_time() - begin)
    order = SampleOrder(mixture, SETTINGS)
    begin = time.process_time()
    offsets = rank_offsets(PER_RANK * ranks, 1, ranks - 1, ranks)
    positions = np.arange(sampler.schedule.steps_per_epoch)[:, None] * (PER_RANK * ranks) + offsets
    rows = order.indices(positions.ravel()).sample_rows
    found["an epoch of a rank s"] = time.process_time() - begin
    assert np.unique(rows).size == rows.size
    found["private MB after it"] = (private_bytes() - before) / 1e6
    return found


def private_bytes() -> int:
    """Return the bytes of memory that no other process maps, pages of files that this one alone has read included."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    private = re.findall(r"^(?:Private_Dirty|Private_Clean):\s+(\d+)", rollup, re.MULTILINE)
    return 1024 * sum(map(int, private))


def epoch_order(path: Path) -> EpochOrder:
    """Return the order of the first epoch of a set."""
    index = json.loads((path / "index.json").read_text())
    sizes = [shard["samples"] for shard in index["shards"]]
    return EpochOrder(sizes, index["fingerprint"], SETTINGS.seed, 0, window=SETTINGS.window)


def mixing(order: EpochOrder, batch: int, batches: int = 200) -> dict[str, float]:
    """How the samples of a global batch lie in the build, relative to a full shuffle.

    `shards` are distinct ones of a batch. `correlation` is that of the rows at consecutive positions. `together` is how
    many times as often as by chance two samples of one batch are within a thousand of each other in the build.
    """
    generator = np.random.default_rng(29)
    numbers = generator.integers(order.size // batch, size=batches)
    rows = [order.rows(number * batch + np.arange(batch)) for number in numbers.tolist()]
    shards, near = (int(order.size // SHARD_SAMPLES), 1000)
    found = float(np.mean([np.unique(each // SHARD_SAMPLES).size for each in rows]))
    ideal = shards * (1 - (1 - 1 / shards) ** batch)
    pairs = float(np.mean([_near_pairs(np.sort(each), near) for each in rows]))
    by_chance = batch * (batch - 1) / 2 * 2 * near / order.size
    consecutive = np.concatenate([np.stack([each[:-1], each[1:]], axis=1) for each in rows])
    correlation = float(np.corrcoef(consecutive.T)[0, 1])
    figures = {"shards": found, "ideal shards": ideal, "correlation": correlation, "together": pairs / by_chance}
    return {"batch": batch, **figures}


def _near_pairs(ascending: np.ndarray, near: int) -> int:
    return int((np.searchsorted(ascending, ascending + near, side="right") - np.arange(ascending.size) - 1).sum())


def storage(samples: int) -> dict[str, float]:
    """Bytes of the whole set, and what a GPU reads per second at the rates of docs/scale.md."""
    passages = {"BERT-base": 256 / 0.141, "7B": 128 / 8.3}  # passages a second of a GPU: `bali-ds plan --gpus 8`
    return {"GB": samples * BYTES / 1e9, "table GB": samples * SAMPLE_DTYPE.itemsize / 1e9} | {
        f"MB/s a GPU, {name}": rate * BYTES / 1e6 for name, rate in passages.items()
    }


def simulated_build(cores: int) -> dict[str, float]:
    """Hours of a build over the baseline: files are taken by the next free core, then shards are assembled."""
    rates = json.loads((ROOT / "bench/results/shards.json").read_text())
    generator = np.random.default_rng(29)
    records = np.maximum(1, generator.normal(RECORDS, DEVIATION * RECORDS, FILES))
    free = [rates["dictionary_seconds"]] * cores
    heapq.heapify(free)
    for seconds in (records / rates["abstracts_per_second_and_core"]).tolist():
        heapq.heappush(free, heapq.heappop(free) + seconds)
    assembly = 2 * records.sum() * BYTES / DISK_RATE  # parts are read and shards are written
    busy = records.sum() / rates["abstracts_per_second_and_core"]
    return {
        "cores": cores, "files h": max(free) / 3600, "cores busy %": 100 * busy / (cores * max(free)),
        "assembly h": assembly / 3600, "hours": (max(free) + assembly) / 3600,
    }  # fmt: skip


if __name__ == "__main__":
    main()
