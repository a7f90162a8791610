"""Compares the concept graph with Python dicts and an in-memory CSR, on generated RRF files of the shape of the UMLS.

    python bench/graph.py --scale 0.05

Scale 1 is 4 million concepts, 15 million names and 39 million rows of relations, with a row for each direction as in
the UMLS. Rates are per processor time, so that other work on the machine does not count. All files are written below
--folder and removed afterwards.
"""

import argparse
import gc
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
from inputs.umls_shape import generate

from bali_ds.files import write_json
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.randomness import derive

FAN_OUT, BATCH, TURNS = 3, 4096, 30
DICT_NAMES = 500_000  # number of concepts whose names are put into dicts


def main() -> None:
    """Generate, build, measure, print one table."""
    options = _options()
    folder = options.folder.resolve()
    rrf, graph = folder / "rrf", folder / "graph"
    results: dict[str, object] = {"scale": options.scale}
    generated = not rrf.exists()
    if generated:
        rrf.mkdir(parents=True)
        results["generation_s"] = _timed(lambda: generate(rrf, options.scale))
    results["rrf_bytes"] = sum(path.stat().st_size for path in rrf.iterdir())
    rows, build = measure_build(rrf, graph)
    results |= build
    results |= measure_size(graph, rows)
    results |= _measured_apart("opening", graph)
    results |= _measured_apart("sampling", graph)
    results |= _measured_apart("peers", graph)
    results["times_dict"] = round(results["concepts_per_s"] / results["dict_concepts_per_s"], 1)  # type: ignore[operator]
    for key, value in results.items():
        print(f"{key:32} {value:,}" if isinstance(value, int | float) else f"{key:32} {value}")
    write_json(Path(__file__).parent / "results" / f"{options.name}.json", results)
    if not options.keep:
        shutil.rmtree(graph)
        if generated:
            shutil.rmtree(rrf)
        with suppress(OSError):  # the folder holds other files
            folder.rmdir()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", type=float, default=0.05, help="1 is the whole UMLS (default 0.05)")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-graph"), help="where to write")
    parser.add_argument("--name", default="graph", help="name of the results file")
    parser.add_argument("--keep", action="store_true", help="keep what was generated; used again when it is there")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(PARTS[options.part](options.folder)))
        sys.exit()
    return options


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return round(time.perf_counter() - start, 2)


def _measured_apart(part: str, graph: Path) -> dict[str, object]:
    """Run one measurement in a new process, so that its memory can be measured."""
    command = [sys.executable, __file__, "--part", part, "--folder", str(graph)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_build(rrf: Path, graph: Path) -> tuple[int, dict[str, float]]:
    """Build with the command line; return rows of MRREL, wall and processor time and peak resident memory."""
    command = [sys.executable, "-m", "bali_ds", "graph", "build", "--rrf", str(rrf), "--out", str(graph), "--json"]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds, after = round(time.perf_counter() - start, 2), resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    rows = json.loads(done.stdout)["read"][f"{rrf.name}/MRREL"]["rows"]
    figures = {"build_s": seconds, "build_cpu_s": round(cpu, 1), "build_peak_gib": round(after.ru_maxrss / 2**20, 2)}
    return rows, figures


def measure_size(path: Path, rows: int) -> dict[str, object]:
    """Bytes on disk per fact, per row of MRREL (two for each fact) and per name."""
    graph = KnowledgeGraph.open(path)
    size = {file.name.removesuffix(".npy"): file.stat().st_size for file in path.iterdir()}
    edges = sum(size[column] for column in ("edges.offsets", "edges.entries", "kinds.relations", "kinds.sources"))
    names = size["names.offsets"] + size["concepts.names"]
    return {
        "concepts": graph.num_concepts,
        "names": graph.num_names,
        "facts": graph.num_edges,
        "relations": graph.num_relations,
        "store_bytes": sum(size.values()),
        "relation_rows": rows,
        "bytes_per_relation_row": round(edges / rows, 2),
        "bytes_per_fact": round(edges / graph.num_edges, 2),
        "bytes_per_name_beside_text": round(names / graph.num_names, 2),
        "text_bytes_per_name": round(size["names.text"] / graph.num_names, 2),
    }


def opening(path: Path) -> dict[str, object]:
    """Time to open the graph: the first, and the median of the next eight in the same process."""
    times = [_timed_ms(path) for _ in range(10)]
    return {"open_first_ms": times[0], "open_median_ms": round(statistics.median(times[1:]), 2)}


def _timed_ms(path: Path) -> float:
    start = time.perf_counter()
    KnowledgeGraph.open(path).lookup(["C0000001"])
    return round((time.perf_counter() - start) * 1000, 2)


def sampling(path: Path) -> dict[str, object]:
    """Concepts per second of processor time of one process, in batches of random concepts, and its private memory."""
    from bali_ds.graph.neighbor_sampling import EdgeFilter, WeightedSampler, sample_neighbors

    before = _private_mib()
    graph = KnowledgeGraph.open(path)
    random_numbers = np.random.default_rng(1)
    concepts = random_numbers.integers(0, graph.num_concepts, (TURNS, BATCH))
    keys = [derive(turn, np.arange(BATCH)) for turn in range(TURNS)]
    sampler = WeightedSampler(graph, EdgeFilter(weights={graph.relations[0]: 0.1}))
    rates = {
        "concepts_per_s": _rate(lambda turn: sample_neighbors(graph, concepts[turn], FAN_OUT, keys[turn])),
        "weighted_concepts_per_s": _rate(lambda turn: sampler.sample(concepts[turn], FAN_OUT, keys[turn])),
    }
    for concept in random_numbers.integers(0, graph.num_concepts, 20_000).tolist():
        graph.names(concept)
    return {
        **rates,
        "private_mib_before_opening": before,
        "private_mib_after_sampling": _private_mib(),
    }


def _private_mib() -> float:
    """Memory that this process does not share: anonymous pages, without mapped columns, which are in the page cache."""
    status = Path("/proc/self/status").read_text()
    return round(int(status.partition("RssAnon:")[2].split()[0]) / 1024, 1)


def peers(path: Path) -> dict[str, object]:
    """A dict of lists and torch-geometric's in-memory CSR of the same graph."""
    import torch
    from torch_geometric.data import Data
    from torch_geometric.utils.sparse import index2ptr

    graph = KnowledgeGraph.open(path)
    offsets = graph.edge_offsets.astype(np.int64)
    gc.disable()  # no cycles exist here, and searching millions of tuples for them takes minutes
    before = _private_mib()
    names = {graph.cui(row): graph.names(row) for row in range(min(DICT_NAMES, graph.num_concepts))}
    name_bytes = (_private_mib() - before) * 2**20 / sum(map(len, names.values()))
    del names
    before = _private_mib()
    neighbors: dict[str, list[tuple[int, int]]] = {}
    for first in range(0, graph.num_concepts, 100_000):
        bounds = offsets[first : first + 100_001]
        block = slice(bounds[0], bounds[-1])
        entries = list(zip(graph.edge_targets[block].tolist(), graph.edge_relations[block].tolist(), strict=True))
        for row, (start, end) in enumerate(pairwise((bounds - bounds[0]).tolist()), first):
            neighbors[graph.cui(row)] = entries[start:end]
        del entries
    dict_mib = _private_mib() - before
    random_numbers, draw = np.random.default_rng(1), random.Random(1)
    turns = [random_numbers.integers(0, graph.num_concepts, BATCH).tolist() for _ in range(TURNS)]
    cuis = [[graph.cui(row) for row in turn] for turn in turns]

    def from_dict(turn: int) -> None:
        drawn = []
        for cui in cuis[turn]:
            edges = neighbors[cui]
            few = draw.sample(edges, min(FAN_OUT, len(edges)))
            drawn.append(few + [(-1, -1)] * (FAN_OUT - len(few)))
        np.array(drawn, np.int32)

    dict_rate = _rate(from_dict)
    neighbors.clear()
    source = torch.repeat_interleave(torch.arange(graph.num_concepts), torch.from_numpy(offsets[1:] - offsets[:-1]))
    edge_index = torch.stack([source, torch.from_numpy(graph.edge_targets[:]).long()])
    data = Data(edge_index=edge_index, edge_type=torch.from_numpy(graph.edge_relations[:]).long())
    pointers = index2ptr(data.edge_index[0], graph.num_concepts)
    concepts = torch.from_numpy(random_numbers.integers(0, graph.num_concepts, (TURNS, BATCH)))

    def from_tensors(turn: int) -> None:
        start, degree = pointers[concepts[turn]], pointers[concepts[turn] + 1] - pointers[concepts[turn]]
        picked = start[:, None] + (torch.rand(BATCH, FAN_OUT) * degree[:, None]).long()
        picked = picked.clamp(max=data.num_edges - 1)
        data.edge_index[1][picked], data.edge_type[picked]

    return {
        "dict_concepts_per_s": dict_rate,
        "dict_private_mib": round(dict_mib),
        "dict_bytes_per_fact": round(dict_mib * 2**20 / graph.num_edges, 1),
        "dict_bytes_per_name": round(name_bytes, 1),
        "pyg_csr_concepts_per_s": _rate(from_tensors),  # with replacement: the sampler itself needs pyg-lib
        "pyg_bytes_per_fact": round((edge_index.nbytes + data.edge_type.nbytes) / graph.num_edges, 1),
    }


def _rate(call: Callable[[int], object]) -> int:
    """Concepts per second of processor time: the median over batches of different concepts, after a few to warm up."""
    times = []
    for turn in range(TURNS):
        start = time.process_time()
        call(turn)
        times.append(time.process_time() - start)
    return round(BATCH / statistics.median(times[5:]))


PARTS = {"opening": opening, "sampling": sampling, "peers": peers}

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
