"""What grows with the number of ranks: the real order, loss schedule and exchanges at up to 1,024 ranks in one process.

    python bench/scale.py [--ranks 8 64 512 1024]

Nothing is computed and nothing is sent: messages, bytes, connections and files are counted, Python's processor time is
measured, and what only a cluster has is assumed (bali_ds/planning/cluster.py). docs/scale.md explains the tables.
Writes bench/results/scale.json.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from inputs.cluster import FAILURES_PER_GPU_HOUR, best_interval, lost_fraction, straggler_factor
from inputs.fake_ranks import CountingRanks, FakeRanks, run_fake_ranks

from bali_ds.checkpoint import zero_reader
from bali_ds.checkpoint.asynchronous_save import AsynchronousSave
from bali_ds.checkpoint.manager import CheckpointManager, RunProgress
from bali_ds.checkpoint.marker import step_name, write_marker
from bali_ds.config import CheckpointConfig, load_recipe
from bali_ds.data.sampler import EpochOrder, Position, Schedule, rank_offsets
from bali_ds.files import sha256_file, write_json
from bali_ds.losses.contrastive.communication import Exchange
from bali_ds.losses.contrastive.communication_cost import (
    SCHEDULES,
    LossSizes,
    choose_schedule,
    schedule_cost,
    units,
)
from bali_ds.losses.contrastive.sorted_views import ViewLayout
from bali_ds.planning.cluster import Cluster
from bali_ds.planning.run_data import RunData
from bali_ds.training.startup import check_equal_inputs, input_values

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "shards/built/sample"
CLUSTER = Cluster()
VIEWS, WIDTH = 2560, 768  # views of a rank, 2.6 million at 1,024 ranks; hidden size of BERT-base
PARAMETERS = 7.6e9  # of a 7B decoder


def main() -> None:
    """Count, measure and print every table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64, 512, 1024])
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/scale.json")
    options = parser.parse_args()
    if not SAMPLE.is_dir():
        sys.exit("bench/scale.py: build the sample first: make train")
    begin = time.perf_counter()
    result = {
        "exchanges": [row for ranks in options.ranks for row in exchanges(ranks)],
        "order": [order(ranks) for ranks in options.ranks],
        "loss": [row for ranks in options.ranks for row in loss_schedules(ranks)],
        "column-owner": [
            column_owner(views, ranks, network)
            for network in (CLUSTER.rates.between_nodes, 1.25e9)
            for views in (512, 2560, 16_384)
            for ranks in (2, *options.ranks)
        ],
        "files": [files(ranks) for ranks in options.ranks],
        "failures": [row for ranks in options.ranks for row in failures(ranks)],
        "stragglers": [
            {"ranks": ranks, "step at 2 %": straggler_factor(ranks, 0.02), "step at 5 %": straggler_factor(ranks, 0.05)}
            for ranks in options.ranks
        ],
    }
    for name, rows in result.items():
        print_table(name, rows)
    print(f"\n{time.perf_counter() - begin:.0f} s")
    write_json(options.out, result)


def print_table(name: str, rows: list[dict[str, Any]]) -> None:
    """Print rows with equal keys."""
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(f"\n{name}")
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def _cell(value: object) -> str:
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def exchanges(ranks: int) -> list[dict[str, Any]]:
    """Count the exchanges of numbers and objects: at the start, in every step, at a checkpoint and at a resume."""
    recipe = load_recipe(ROOT / "launch/recipes/sample.yaml", [])
    inputs = input_values(recipe, RunData.open(recipe), {"zero_optimization": {"stage": 1}})
    identity = {"data": "same", "world size": ranks, "ZeRO stage": 1}
    with tempfile.TemporaryDirectory() as directory:
        checkpoints = Path(directory) / "checkpoints"
        own_files = write_checkpoint(checkpoints / step_name(1), ranks, identity)

        def manager(rank: FakeRanks) -> CheckpointManager:
            return CheckpointManager(checkpoints, rank, CheckpointConfig(), identity=identity)

        def start(rank: FakeRanks) -> None:
            rank.barrier()
            rank.all_reduce_max(0)
            check_equal_inputs(rank, inputs)
            rank.broadcast_object("host")
            rank.gather_object("a-host-name-of-20-ch")

        def checkpoint(rank: FakeRanks) -> None:
            save = AsynchronousSave(checkpoints / ".writing" / step_name(2))
            if rank.is_first:
                save.make_directory()
            save.files = own_files[rank.rank]
            rank.barrier()
            for name in save.files:
                (save.directory / name).write_bytes(name.encode())
            assert manager(rank)._finished(RunProgress(2, Position()), save) is None

        def resume(rank: FakeRanks) -> None:
            path, _ = manager(rank)._newest_intact()
            assert path == checkpoints / step_name(1)

        phases: dict[str, Callable[[FakeRanks], object]] = {
            "start": start, "step": lambda rank: rank.all_reduce_max(0), "resume": resume, "checkpoint": checkpoint,
        }  # fmt: skip
        return [counted(phase, ranks, work) for phase, work in phases.items()]


def counted(phase: str, ranks: int, work: Callable[[FakeRanks], object]) -> dict[str, Any]:
    """Run a phase on all ranks and return what the busiest rank sent, and the processor time of an average one."""
    begin = time.process_time()
    found = run_fake_ranks(ranks, work)
    seconds = time.process_time() - begin
    for _, outcome in found:
        if isinstance(outcome, Exception):
            raise outcome
    others = [rank for rank, _ in found[1:]]
    return {
        "phase": phase,
        "ranks": ranks,
        "messages": max(rank.messages for rank, _ in found),
        "connections": max(len(rank.peers) for rank, _ in found),
        "bytes, median rank": int(np.median([rank.payload for rank in others])),
        "bytes, rank 0": found[0][0].payload,
        "Python ms": 1e3 * seconds / ranks,
    }


def write_checkpoint(path: Path, ranks: int, identity: dict[str, Any]) -> list[dict[str, dict[str, Any]]]:
    """Write a checkpoint of two small files for each rank; return the entries of each rank's files."""
    path.mkdir(parents=True)
    entries = []
    for rank in range(ranks):
        names = [f"zero_pp_rank_{rank}_mp_rank_00_{kind}_states.pt" for kind in ("model", "optim")]
        for name in names:
            (path / name).write_bytes(name.encode())
        entries.append({name: {"bytes": len(name), "sha256": sha256_file(path / name)} for name in names})
    write_marker(path, 1, Position(), identity, {name: entry for own in entries for name, entry in own.items()})
    return entries


def order(ranks: int) -> dict[str, Any]:
    """Check that the ranks share out every step of an order of 100 million samples; measure one rank's part."""
    sizes = np.full(25_000, 4_000)
    global_batch, samples = 16 * ranks, int(sizes.sum())
    begin = time.process_time()
    epoch = EpochOrder(sizes, "0" * 64, 29, 0)
    opened = time.process_time() - begin
    first = Schedule(samples, global_batch).begin(7).samples_seen
    begin = time.process_time()
    own = [epoch.rows(first + rank_offsets(global_batch, 1, rank, ranks)) for rank in range(ranks)]
    seconds = time.process_time() - begin
    whole = np.sort(epoch.rows(first + np.arange(global_batch)))
    assert np.array_equal(np.sort(np.concatenate(own)), whole)
    assert len(np.unique(whole)) == global_batch
    shards = [len(np.unique(rows // 4_000)) for rows in own]
    return {
        "ranks": ranks,
        "samples": samples,
        "open ms": 1e3 * opened,
        "step ms, one rank": 1e3 * seconds / ranks,
        "shards open, one rank": int(np.median(shards)),
        "shards open, all": len(np.unique(whole // 4_000)),
    }


def loss_schedules(ranks: int) -> list[dict[str, Any]]:
    """Count what every schedule of the loss sends, and predict its seconds on the assumed cluster."""
    sizes = loss_sizes(ranks, VIEWS, WIDTH)
    rows = []
    for name, unit in units(sizes).items():
        exchange = exchange_of(ranks, unit)
        begin = time.process_time()
        blocks = passes(exchange)
        seconds = time.process_time() - begin
        own, node = exchange.ranks, exchange.unit
        assert isinstance(own, CountingRanks)
        assert isinstance(node, CountingRanks)
        in_node = node if node is not own else CountingRanks(0, 1)
        cost = schedule_cost(sizes, CLUSTER.rates, unit)
        rows.append(
            {
                "schedule": name + (" (auto)" if choose_schedule(sizes, CLUSTER.rates) == name else ""),
                "ranks": ranks,
                "blocks": blocks,
                "messages": own.messages + in_node.messages,
                "GB sent": own.bytes_sent / 1e9,
                "GB in the node": in_node.bytes_sent / 1e9,
                "Python ms": 1e3 * seconds,
                "GiB held": cost.held / 2**30,
                "computing ms": 1e3 * cost.computing,
                "waiting ms": 1e3 * cost.waiting,
            }
        )
    return rows


def column_owner(views: int, ranks: int, network: float) -> dict[str, Any]:
    """Compare the schedules with one that is not offered: every rank computes all of its own views' gradients.

    It gathers the features once and sends nothing back, for 12 instead of 8 operations a pair of views and feature.
    """
    sizes, rates = loss_sizes(ranks, views, WIDTH), replace(CLUSTER.rates, between_nodes=network)
    block = views * WIDTH * sizes.itemsize
    node = sizes.ranks_per_node
    gathered = max((ranks - 1) * block / rates.within_node, (ranks - node) * block / node / network)
    computing = sum(
        max(share * 6 * views * views * WIDTH * ranks / rates.products, calls * rates.call)
        for share, calls in ((1 / 3, ranks), (0, ranks), (2 / 3, ranks))
    )
    costs = {name: schedule_cost(sizes, rates, unit) for name, unit in units(sizes).items()}
    held = ranks * block
    return {
        "ranks": ranks,
        "views": views,
        "GB/s between nodes": network / 1e9,
        **{
            f"{name} ms": _if_it_fits(1e3 * costs[name].seconds, costs[name].held) if name in costs else ""
            for name in SCHEDULES
        },
        "column-owner ms": _if_it_fits(1e3 * (gathered + computing), held),
    }


def _if_it_fits(milliseconds: float, held: int) -> float | str:
    return milliseconds if held <= CLUSTER.rates.memory else "does not fit"


def loss_sizes(ranks: int, views: int, width: int) -> LossSizes:
    """Return the sizes of `ntxent` on GPUs, with features in bf16."""
    node = min(CLUSTER.node, ranks)
    return LossSizes(ranks, node, rows=views, columns=views, width=width, itemsize=2, joint=True, passes=3)


def exchange_of(ranks: int, unit: int) -> Exchange:
    """Return the exchange of the first rank, whose features exist in shape alone."""
    ids = torch.empty(ranks * VIEWS, dtype=torch.int64, device="meta")
    layout = ViewLayout(0, ids, ids, tuple(range(0, ranks * VIEWS + 1, VIEWS)))
    features = torch.empty(VIEWS, WIDTH, dtype=torch.bfloat16, device="meta")
    everyone = CountingRanks(0, ranks)
    return Exchange(everyone, [layout], [features], everyone if unit == ranks else CountingRanks(0, unit))


def passes(exchange: Exchange) -> int:
    """Run the three passes of `ntxent` without arithmetic; return the number of pairs of blocks in one of them."""
    blocks = 0

    def count(_: object) -> None:
        nonlocal blocks
        blocks += 1

    exchange.accumulate(count, (), torch.float64)
    exchange.accumulate(count, (2,), torch.float64)
    exchange.accumulate(count, (WIDTH,), torch.float32)
    return blocks // 3


def files(ranks: int) -> dict[str, Any]:
    """Count the files that a rank opens at the start, and what all ranks together do to the file system."""
    opened: list[str] = []

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and watching and isinstance(arguments[0], str | Path):
            path = os.path.abspath(arguments[0])
            if path.startswith(str(ROOT / "shards")):
                opened.append(path)

    watching = True
    sys.addaudithook(audit)
    recipe = load_recipe(ROOT / "launch/recipes/sample.yaml", [])
    data = RunData.open(recipe)
    watching = False
    size = sum(shard["bytes"] for shard in data.shards.index["shards"]) if "shards" in data.shards.index else 0
    state = 16 * PARAMETERS
    return {
        "ranks": ranks,
        "opens at start, a rank": len(opened),
        "opens at start, all": len(opened) * ranks,
        "opens of a checkpoint, a rank": max(opens_at_resume(ranks)),
        "GB a rank writes, 7B": state / ranks / 1e9,
        "s in page cache": state / ranks / CLUSTER.disk_write,
        "s on storage": state / CLUSTER.storage,
        "KB a passage": size / max(1, len(data.shards.split("train"))) / 1e3,
    }


def opens_at_resume(ranks: int) -> list[int]:
    """Write a checkpoint of stage 2 and count the files that the first, second and last rank open to resume from it."""
    opened: list[str] = []
    part, loss_scaler = 4, LossScaler(1)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        model = {"module": {}, "buffer_names": [], "param_shapes": [{"weight": torch.Size([part * ranks])}]}
        torch.save(model, path / "mp_rank_00_model_states.pt")
        for rank in range(ranks):
            own = torch.full((part,), float(rank))
            base = {0: {"step": torch.tensor(1.0), "exp_avg": own, "exp_avg_sq": own}}
            state = {"zero_stage": 2, "partition_count": [ranks], "single_partition_of_fp32_groups": [own]}
            state |= {"base_optimizer_state": {"state": base}, "loss_scaler": loss_scaler}
            torch.save({"optimizer_state_dict": state}, path / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        counts = []
        for rank in (0, 1, ranks - 1):
            opened.clear()
            with mock.patch.object(zero_reader, "_load", _recorded(zero_reader._load, opened)):
                read = zero_reader.read_state(path)
                for values in (read.weights, *read.moments.values()):
                    assert values["weight"].stretch(part * rank, part).eq(rank).all()
            counts.append(len(opened))
    return counts


def _recorded(load: Callable[[Path], Any], opened: list[str]) -> Callable[[Path], Any]:
    def recorded(file: Path) -> Any:
        opened.append(file.name)
        return load(file)

    return recorded


def failures(ranks: int) -> list[dict[str, Any]]:
    """Simulate the time lost to failures at several checkpoint intervals."""
    rows = []
    for factor in (1.0, 5.0):
        mean = 3600 / (FAILURES_PER_GPU_HOUR * factor * ranks)
        seconds = 16 * PARAMETERS / ranks / CLUSTER.disk_write
        best = best_interval(seconds, mean)
        intervals = {"10 min": 600.0, "1 h": 3600.0, "6 h": 21600.0, "best": best}
        lost = {
            f"lost at {name}, %": 100 * lost_fraction(ranks, each, seconds, restart=CLUSTER.restart, factor=factor)
            for name, each in intervals.items()
        }
        rows.append(
            {"ranks": ranks, "rate": f"x{factor:g}", "failure every h": mean / 3600, "checkpoint s": seconds,
             "best interval min": best / 60, **lost}
        )  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
