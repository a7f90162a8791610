"""Speed, memory and recall of nearest-name search, compared with the exact index of faiss.

    python bench/linking.py --names 1000000 --queries 1000

Names are unit vectors around centers, like synonyms of concepts; a query is a name with noise. Each method runs in
its own process with one thread. Reported are CPU seconds, the peak of resident memory in addition to the vectors,
which are mapped from a file, and recall, the fraction of queries whose nearest name is found. Writes
bench/results/linking.json.
"""

import argparse
import contextlib
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from bali_ds.files import write_json
from bali_ds.inference.search import InvertedFile, nearest

Vectors = NDArray[np.float32]
COUNT = 5
SPREAD = 0.05  # standard deviation of a query's noise in each dimension


def main() -> None:
    """Generate the vectors, run every method, print one table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--width", type=int, default=384)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        names, queries = Path(folder) / "names.npy", Path(folder) / "queries.npy"
        draw(names, queries, options)
        rows = {name: alone(name, names, queries) for name in CONTESTANTS}
    truth = np.array(rows["ours, exact"].pop("found"))
    for name, row in rows.items():
        found = np.array(row.pop("found")) if "found" in row else truth
        row["recall@1"] = float((found[:, 0] == truth[:, 0]).mean())
        search, held = 1000 * row["search_s"] / options.queries, row["memory_bytes"] / 2**20
        print(
            f"{name:<24} build {row['build_s']:7.1f} s   search {search:7.2f} ms a query   memory {held:6.0f} MiB"
            f"   recall@1 {row['recall@1']:.3f}"
        )
    facts = {"names": options.names, "queries": options.queries, "width": options.width, "threads": 1}
    write_json(Path(__file__).parent / "results" / "linking.json", {**facts, "rows": rows})


def draw(names: Path, queries: Path, options: argparse.Namespace) -> None:
    """Write unit vectors [names, width] and [queries, width]."""
    random = np.random.default_rng(0)
    vectors = np.lib.format.open_memmap(names, "w+", np.float32, (options.names, options.width))
    centers = random.standard_normal((options.names // 4 + 1, options.width), np.float32)
    for start in range(0, options.names, 1 << 16):
        rows = np.arange(start, min(start + (1 << 16), options.names))
        moved = centers[rows // 4] + 0.5 * random.standard_normal((len(rows), options.width), np.float32)
        vectors[rows] = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    near = vectors[random.choice(options.names, options.queries, replace=False)]
    near = near + SPREAD * random.standard_normal(near.shape, np.float32)
    np.save(queries, near / np.linalg.norm(near, axis=1, keepdims=True))


def ours_exact(names: Vectors, queries: Vectors) -> Any:
    """Exact search by blocks of products, without an index."""
    return lambda: nearest(queries, names, COUNT)[0]


def ours_approximate(names: Vectors, queries: Vectors) -> Any:
    """Inverted file with 8-bit quantization."""
    index = InvertedFile(names)
    return lambda: index.nearest(queries, COUNT)[0]


def faiss_flat(names: Vectors, queries: Vectors) -> Any:
    """Exact index of faiss, which copies the vectors."""
    index = faiss.IndexFlatIP(names.shape[1])
    index.add(np.ascontiguousarray(names))
    return lambda: index.search(queries, COUNT)[1]


CONTESTANTS = {"ours, exact": ours_exact, "ours, inverted file": ours_approximate, "faiss IndexFlatIP": faiss_flat}


def alone(name: str, names: Path, queries: Path) -> dict[str, Any]:
    """Run one method in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        row: dict[str, Any] = json.loads(pool.apply(run, (name, names, queries)))
    print(f"{name}: done", flush=True)
    return row


def run(name: str, names: Path, queries: Path) -> str:
    """Return CPU seconds of building and of searching, memory and results as JSON."""
    faiss.omp_set_num_threads(1)
    vectors, asked = np.load(names, mmap_mode="r"), np.load(queries)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before, mapped = memory("VmRSS"), memory("RssFile")
    start = time.process_time()
    search = CONTESTANTS[name](vectors, asked)
    built = time.process_time()
    found = search()
    searched = time.process_time()
    # The system can drop pages of the mapped file, so they do not count.
    own = memory("VmHWM") - before - (memory("RssFile") - mapped)
    times = {"build_s": built - start, "search_s": searched - built}
    return json.dumps({**times, "memory_bytes": own, "found": found.tolist()})


def memory(what: str) -> int:
    """Return a line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{what}:")).split()[1]) * 1024


if __name__ == "__main__":
    main()
