"""Measure the concept graph on generated RRF of the shape of the UMLS, against plain dicts and an in-memory CSR.

    python bench/graph.py --scale 0.05

Scale 1 is 4 million concepts, 15 million names and 39 million rows of relations, both directions counted as the
UMLS does. Rates are by processor time, so that other work on the machine does not count. Everything is written below
--folder and removed afterwards.
"""

import argparse
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
from pathlib import Path

import numpy as np
import polars as pl

from bali_ds.files import write_json
from bali_ds.graph.store import KnowledgeGraph
from bali_ds.randomness import derive

CONCEPTS, NAMES, RELATIONS = 4_000_000, 15_000_000, 39_000_000
FAN_OUT, BATCH, TURNS = 3, 4096, 30
DICT_ROWS = 500_000
WORDS = ["acute", "chronic", "benign", "left", "right", "renal", "cardiac", "hepatic", "bone", "disease", "of", "the"]
SOURCES = ["SNOMEDCT_US", "MSH", "NCI", "ICD10CM", "RXNORM", "LNC", "MDR", "GO", "HPO", "OMIM", "FMA", "NCBI"]
RELA = ["isa", "has_finding_site", "part_of", "may_treat", "has_ingredient", "associated_with", "mapped_to", ""]
INVERSE = [
    "inverse_isa",
    "finding_site_of",
    "has_part",
    "may_be_treated_by",
    "ingredient_of",
    "rela_17",
    "mapped_from",
    "",
]


def main() -> None:
    """Generate, build, measure, print one table."""
    options = _options()
    folder = options.folder.resolve()
    rrf, graph = folder / "rrf", folder / "graph"
    results: dict[str, object] = {"scale": options.scale}
    if not rrf.exists():
        rrf.mkdir(parents=True)
        results["generation_s"] = _timed(lambda: generate(rrf, options.scale))
    results["rrf_bytes"] = sum(path.stat().st_size for path in rrf.iterdir())
    results |= measure_build(rrf, graph)
    results |= measure_size(graph)
    results |= _measured_apart("opening", graph)
    results |= _measured_apart("sampling", graph)
    results |= _measured_apart("peers", graph)
    results["times_dict"] = round(results["concepts_per_s"] / results["dict_concepts_per_s"], 1)  # type: ignore[operator]
    for key, value in results.items():
        print(f"{key:32} {value:,}" if isinstance(value, int | float) else f"{key:32} {value}")
    write_json(Path(__file__).parent / "results" / f"{options.name}.json", results)
    if not options.keep:
        shutil.rmtree(folder)


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
    """Run one measurement in a fresh process, so that its memory is its own."""
    command = [sys.executable, __file__, "--part", part, "--folder", str(graph)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


# Generation


def generate(folder: Path, scale: float) -> None:
    """Write MRCONSO, MRREL, MRSTY and MRRANK of the asked size, degrees skewed as a power law."""
    random_numbers = np.random.default_rng(7)
    concepts = int(CONCEPTS * scale)
    numbers = np.sort(random_numbers.choice(9_999_999, concepts, replace=False)) + 1
    cuis = pl.Series(numbers).cast(pl.String).str.zfill(7)
    cuis = ("C" + cuis).rename("cui")
    _write_blocks(folder / "MRCONSO.RRF", _atoms(cuis, int(NAMES * scale), random_numbers))
    _write_blocks(folder / "MRREL.RRF", _relations(cuis, int(RELATIONS * scale), random_numbers))
    types = random_numbers.integers(1, 204, concepts)
    semantic = pl.DataFrame({"cui": cuis, "tui": "T" + pl.Series(types).cast(pl.String).str.zfill(3)})
    _write_blocks(folder / "MRSTY.RRF", [_row(semantic, "cui|tui|A1|A type|AT1|")])
    ranks = [f"{400 - 4 * rank:04}|{source}|PT|N|\n" for rank, source in enumerate(SOURCES)]
    (folder / "MRRANK.RRF").write_text("".join(ranks))


def _row(frame: pl.DataFrame, fields: str) -> pl.DataFrame:
    columns = [pl.col(field) if field in frame.columns else pl.lit(field) for field in fields.split("|")]
    return frame.select(pl.concat_str([*columns, pl.lit("")], separator="|"))


def _write_blocks(path: Path, blocks: object) -> None:
    with open(path, "wb") as stream:
        for block in blocks:  # type: ignore[attr-defined]
            block.write_csv(stream, include_header=False, quote_style="never")


def _atoms(cuis: pl.Series, count: int, random_numbers: np.random.Generator):  # type: ignore[no-untyped-def]
    owners = np.concatenate([np.arange(cuis.len()), random_numbers.integers(0, cuis.len(), count - cuis.len())])
    owners.sort()
    words = pl.Series(WORDS)
    for start in range(0, count, 1_000_000):
        owner = owners[start : start + 1_000_000]
        number = np.arange(start, start + owner.size)
        parts = [words.gather(random_numbers.integers(0, len(WORDS), owner.size)) for _ in range(4)]
        source = pl.Series(SOURCES).gather(random_numbers.integers(0, len(SOURCES), owner.size))
        first = np.concatenate([[start == 0 or owner[0] != owners[start - 1]], owner[1:] != owner[:-1]])
        frame = pl.DataFrame({"cui": cuis.gather(owner), "sab": source, "n": number, "first": first}).with_columns(
            name=pl.concat_str([*parts, pl.Series(number).cast(pl.String)], separator=" "),
            ts=pl.when("first").then(pl.lit("P")).otherwise(pl.lit("S")),
            pref=pl.when("first").then(pl.lit("Y")).otherwise(pl.lit("N")),
            id=pl.col("n").cast(pl.String).str.zfill(8),
        )
        yield _row(frame, "cui|ENG|ts|L1234567|PF|S1234567|pref|id||id|id|sab|PT|id|name|0|N|256")


def _relations(cuis: pl.Series, count: int, random_numbers: np.random.Generator):  # type: ignore[no-untyped-def]
    for start in range(0, count // 2, 1_000_000):
        size = min(1_000_000, count // 2 - start)
        # Cubes of uniform numbers crowd at the first of a shuffled order: a few hubs, many leaves.
        head = random_numbers.integers(0, cuis.len(), size)
        tail = (random_numbers.random(size) ** 3 * cuis.len()).astype(np.int64) * 7_919 % cuis.len()
        kind = random_numbers.integers(0, len(RELA), size)
        source = pl.Series(SOURCES).gather(random_numbers.integers(0, len(SOURCES), size))
        number = pl.Series(np.arange(start, start + size)).cast(pl.String).str.zfill(8)
        ends = {"head": cuis.gather(head), "tail": cuis.gather(tail), "sab": source, "n": number}
        for first, second, labels in (("head", "tail", RELA), ("tail", "head", INVERSE)):
            frame = pl.DataFrame({**ends, "rela": pl.Series(labels).gather(kind)})
            yield _row(frame, f"{second}|A12345678|CUI|RO|{first}|A12345678|CUI|rela|n||sab|sab|||N|")


# Measurements


def measure_build(rrf: Path, graph: Path) -> dict[str, object]:
    """Build through the command line; wall and processor time and peak resident memory of that process."""
    command = [sys.executable, "-m", "bali_ds", "graph", "build", "--rrf", str(rrf), "--out", str(graph)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = _timed(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"build_s": seconds, "build_cpu_s": round(cpu, 1), "build_peak_gib": round(after.ru_maxrss / 2**20, 2)}


def measure_size(path: Path) -> dict[str, object]:
    """Bytes on disk, an edge and a name."""
    graph = KnowledgeGraph.open(path)
    size = {file.name.removesuffix(".npy"): file.stat().st_size for file in path.iterdir()}
    edges = sum(size[f"edges.{column}"] for column in ("offsets", "targets", "relations", "sources"))
    names = size["names.offsets"] + size["concepts.names"]
    return {
        "concepts": graph.num_concepts,
        "names": graph.num_names,
        "facts": graph.num_edges,
        "relations": graph.num_relations,
        "store_bytes": sum(size.values()),
        "bytes_per_edge_entry": round(edges / (2 * graph.num_edges), 2),
        "bytes_per_fact": round(edges / graph.num_edges, 2),
        "bytes_per_name_beside_text": round(names / graph.num_names, 2),
        "text_bytes_per_name": round(size["names.text"] / graph.num_names, 2),
    }


def opening(path: Path) -> dict[str, object]:
    """Median of nine openings in one process; the first is apart."""
    times = [_timed_ms(path) for _ in range(10)]
    return {"open_first_ms": times[0], "open_median_ms": round(statistics.median(times[1:]), 2)}


def _timed_ms(path: Path) -> float:
    start = time.perf_counter()
    KnowledgeGraph.open(path).lookup(["C0000001"])
    return round((time.perf_counter() - start) * 1000, 2)


def sampling(path: Path) -> dict[str, object]:
    """Concepts a second of processor time of one process, and its private memory, for random concepts in batches."""
    from bali_ds.graph.sampling import sample_neighbours
    from bali_ds.graph.weighting import EdgeFilter, WeightedSampler

    before = _private_mib()
    graph = KnowledgeGraph.open(path)
    random_numbers = np.random.default_rng(1)
    concepts = random_numbers.integers(0, graph.num_concepts, (TURNS, BATCH))
    keys = [derive(turn, np.arange(BATCH)) for turn in range(TURNS)]
    sampler = WeightedSampler(graph, EdgeFilter(weights={graph.relations[0]: 0.1}))
    rates = {
        "concepts_per_s": _rate(lambda turn: sample_neighbours(graph, concepts[turn], FAN_OUT, keys[turn])),
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
    """Memory that this process does not share: anonymous pages; mapped columns are the page cache's."""
    status = Path("/proc/self/status").read_text()
    return round(int(status.partition("RssAnon:")[2].split()[0]) / 1024, 1)


def peers(path: Path) -> dict[str, object]:
    """A dict of lists and torch-geometric's in-memory CSR over the same graph."""
    import torch
    from torch_geometric.data import Data
    from torch_geometric.utils.sparse import index2ptr

    graph = KnowledgeGraph.open(path)
    rows = min(DICT_ROWS, graph.num_concepts)
    last = int(graph.edge_offsets[rows])
    before = _private_mib()
    neighbours: dict[str, list[tuple[int, int]]] = {}
    for row in range(rows):
        span = slice(int(graph.edge_offsets[row]), int(graph.edge_offsets[row + 1]))
        neighbours[graph.cui(row)] = list(
            zip(graph.edge_targets[span].tolist(), graph.edge_relations[span].tolist(), strict=True)
        )
    dict_bytes = (_private_mib() - before) * 2**20 / last
    random_numbers, draw = np.random.default_rng(1), random.Random(1)
    turns = [random_numbers.integers(0, rows, BATCH).tolist() for _ in range(TURNS)]
    cuis = [[graph.cui(row) for row in turn] for turn in turns]

    def from_dict(turn: int) -> None:
        drawn = []
        for cui in cuis[turn]:
            edges = neighbours[cui]
            few = draw.sample(edges, min(FAN_OUT, len(edges)))
            drawn.append(few + [(-1, -1)] * (FAN_OUT - len(few)))
        np.array(drawn, np.int32)

    source = torch.repeat_interleave(
        torch.arange(graph.num_concepts), torch.from_numpy(np.diff(graph.edge_offsets).astype(np.int64))
    )
    edge_index = torch.stack([source, torch.from_numpy(graph.edge_targets.astype(np.int64))])
    data = Data(edge_index=edge_index, edge_type=torch.from_numpy(graph.edge_relations.astype(np.int64)))
    pointers = index2ptr(data.edge_index[0], graph.num_concepts)
    concepts = torch.from_numpy(random_numbers.integers(0, graph.num_concepts, (TURNS, BATCH)))

    def from_tensors(turn: int) -> None:
        start, degree = pointers[concepts[turn]], pointers[concepts[turn] + 1] - pointers[concepts[turn]]
        picked = start[:, None] + (torch.rand(BATCH, FAN_OUT) * degree[:, None]).long()
        picked = picked.clamp(max=data.num_edges - 1)
        data.edge_index[1][picked], data.edge_type[picked]

    return {
        "dict_concepts_per_s": _rate(from_dict),
        "dict_bytes_per_edge_entry": round(dict_bytes, 1),
        "pyg_csr_concepts_per_s": _rate(from_tensors),  # with replacement: the sampler itself needs pyg-lib
        "pyg_bytes_per_edge_entry": round((edge_index.nbytes + data.edge_type.nbytes) / data.num_edges, 1),
    }


def _rate(call: Callable[[int], object]) -> int:
    """Concepts a second of processor time, the median over turns of other concepts each; the first few warm up."""
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
