"""Measure the contrastive loss against dense torch, open_clip, pytorch-metric-learning and sentence-transformers.

    python bench/contrastive.py --pairs 1024 4096 --width 768 --scale 14 100
    python bench/contrastive.py --pairs --width 768 --ranks 1 2 4
    python bench/contrastive.py --pairs --many 1000000 --threads 2

Every loss gets the same unit features and computes all gradients, including the logit scale's where it has one. Values
and gradients are compared before anything is timed. Runs are interleaved in one process; times are CPU seconds of one
thread, medians and minima, on which other load has little effect. Peak memory is that of live storages, recorded at
every operation.
"""

import argparse
import contextlib
import gc
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from peers.memory import PeakBytes
from torch import Tensor

from bali_ds.distributed import Ranks
from bali_ds.files import read_json, write_json
from bali_ds.losses.contrastive import contrastive_loss

KEY = ("pairs", "width", "data", "scale", "threads", "name")  # identifies a row
DENSE_LIMIT = 20_000  # pairs above which losses that hold the whole similarity matrix are skipped
METRIC_LEARNING_LIMIT = 1 << 30  # bytes of its matrix of positive pairs by negative pairs
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def main() -> None:
    """Measure what the options ask for, print a table and update the JSON file, keeping its other rows."""
    options = _options()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    for pairs in options.pairs:
        for width in options.width:
            for scale in options.scale:
                for data in options.data:
                    rows += measure(pairs, width, scale, data, options)
    for ranks in options.ranks:
        rows += [measure_ranks(ranks, 4096, options.width[0], each) for each in ("gather", "ring")]
    rows += [measure_products(width, options) for width in options.width if options.pairs]
    rows += [measure_many(pairs) for pairs in options.many]
    out = Path(__file__).parent / "results" / "contrastive.json"
    known = {tuple(row[each] for each in KEY): row for row in (read_json(out) if out.exists() else [])}
    known |= {tuple(row[each] for each in KEY): row for row in rows}
    write_json(out, [known[key] for key in sorted(known)])


def measure(pairs: int, width: int, scale: float, data: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row for each loss on one set of views."""
    queries, keys, ids = views(pairs, width, data)
    losses = all_losses(pairs, ids)
    inputs = [queries.requires_grad_(), keys.requires_grad_(), torch.tensor(scale, requires_grad=True)]
    check(losses, inputs, data)
    times: dict[str, list[float]] = {name: [] for name in losses}
    walls: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(options.repeats):
        for name, loss in losses.items():
            cpu, wall = run(loss, inputs)
            times[name].append(cpu)
            walls[name].append(wall)
    rows = []
    for name, loss in losses.items():
        base = "dense ntxent" if "ntxent" in name or "NTXent" in name else "dense clip"
        row = {
            "name": name, "pairs": pairs, "width": width, "scale": scale, "data": data, "threads": options.threads,
            "cpu_s": statistics.median(times[name]), "cpu_min_s": min(times[name]),
            "wall_s": statistics.median(walls[name]), "peak_bytes": peak_bytes(loss, inputs),
            "load": os.getloadavg()[0],
        }  # fmt: skip
        row["of_dense"] = row["cpu_s"] / statistics.median(times[base]) if base in times else None
        rows.append(row)
        report(row)
    return rows


def views(pairs: int, width: int, data: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return unit queries and keys and their ids: random, saturated, or ids by Zipf's law over 300,000."""
    generator = torch.Generator().manual_seed(0)
    queries = F.normalize(torch.randn(pairs, width, generator=generator))
    keys = F.normalize(torch.randn(pairs, width, generator=generator))
    ids = torch.arange(pairs)
    if data == "saturated":
        keys = F.normalize(queries + 0.3 * keys)
    if data == "zipf":
        ids = torch.multinomial(1 / torch.arange(1.0, 300_001), pairs, replacement=True, generator=generator)
    return queries, keys, ids


def all_losses(pairs: int, ids: Tensor) -> dict[str, Loss]:
    """Return the losses by name; those that hold the whole similarity matrix only for few pairs."""

    def ours(kind: str) -> Loss:
        return lambda q, k, s: contrastive_loss(q, k, s, query_concept_ids=ids, key_concept_ids=ids, kind=kind)

    losses: dict[str, Loss | None] = {"ours clip": ours("clip"), "ours ntxent": ours("ntxent")}
    if pairs <= DENSE_LIMIT:
        losses["dense clip"] = lambda q, k, s: dense_clip(q, k, s, ids)
        losses["open_clip ClipLoss"] = open_clip_loss()
    if pairs <= DENSE_LIMIT // 4:
        losses["dense ntxent"] = lambda q, k, s: dense_ntxent(q, k, s, ids)
        losses["pytorch-metric-learning NTXentLoss"] = metric_learning_loss(ids)
    if pairs <= DENSE_LIMIT // 16:
        losses["sentence-transformers cached"] = sentence_transformers_loss()
    return {name: loss for name, loss in losses.items() if loss is not None}


def dense_clip(queries: Tensor, keys: Tensor, scale: Tensor, ids: Tensor) -> Tensor:
    """Return the symmetric cross-entropy over one similarity matrix, with duplicates masked."""
    logits = scale * queries @ keys.T
    places = torch.arange(len(queries))
    if len(ids.unique()) < len(ids):
        logits = logits.masked_fill((ids[:, None] == ids) & (places[:, None] != places), -torch.inf)
    return (F.cross_entropy(logits, places) + F.cross_entropy(logits.T, places)) / 2


def dense_ntxent(queries: Tensor, keys: Tensor, scale: Tensor, ids: Tensor) -> Tensor:
    """Return NT-Xent over the similarity matrix of all views: each positive pair against all negatives."""
    views, ids = torch.cat([queries, keys]), torch.cat([ids, ids])
    logits = scale * views @ views.T
    same = ids[:, None] == ids
    negatives = logits.masked_fill(same, -torch.inf).logsumexp(dim=1)
    anchors, positives = (same & ~torch.eye(len(ids), dtype=torch.bool)).nonzero(as_tuple=True)
    return F.softplus(negatives[anchors] - logits[anchors, positives]).mean()


def open_clip_loss() -> Loss | None:
    """Return open_clip's loss, imported from its file because the package needs image libraries."""
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        return missing("open_clip")
    spec = importlib.util.spec_from_file_location("open_clip_loss", Path(package.origin).with_name("loss.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ClipLoss()


def metric_learning_loss(ids: Tensor) -> Loss | None:
    """Return pytorch-metric-learning's NTXentLoss on all views, or None if its matrix of pairs would be too large."""
    same = ids.repeat(2)[:, None] == ids.repeat(2)
    needed = (int(same.sum()) - len(same)) * int((~same).sum()) * 4
    if needed > METRIC_LEARNING_LIMIT:
        print(f"pytorch-metric-learning would take {needed >> 30} GiB and is skipped", file=sys.stderr)
        return None
    try:
        from pytorch_metric_learning.losses import NTXentLoss
    except ImportError:
        return missing("pytorch-metric-learning")
    return lambda q, k, s: NTXentLoss(1 / s.item())(torch.cat([q, k]), torch.cat([ids, ids]))


def sentence_transformers_loss() -> Loss | None:
    """Return the cached symmetric loss, with an encoder that returns its input."""
    try:
        from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
    except ImportError:
        return missing("sentence-transformers")

    def loss(queries: Tensor, keys: Tensor, scale: Tensor) -> Tensor:
        encoder: Any = torch.nn.Sequential(torch.nn.Identity())
        cached = CachedMultipleNegativesRankingLoss(encoder, scale=scale.item(), mini_batch_size=256)
        value: Tensor = cached.calculate_loss([[queries], [keys]])
        return value

    return loss


def missing(name: str) -> None:
    """Print that a library is not installed."""
    print(f"{name} is not installed and skipped", file=sys.stderr)


def run(loss: Loss, inputs: list[Tensor]) -> tuple[float, float]:
    """Return CPU and wall seconds of one evaluation with all gradients."""
    for each in inputs:
        each.grad = None
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    loss(*inputs).backward()
    return time.process_time() - cpu, time.perf_counter() - wall


def check(losses: dict[str, Loss], inputs: list[Tensor], data: str) -> None:
    """Compare every loss with its dense form, which also warms all of them up."""
    values = {}
    for name, loss in losses.items():
        run(loss, inputs)
        values[name] = (float(loss(*inputs).detach()), inputs[0].grad.clone())  # type: ignore[union-attr]
    for name, (value, gradient) in values.items():
        base = "dense ntxent" if "tx" in name.lower() else "dense clip"
        comparable = base in values and (data == "random" or name.startswith("ours") or "NTXent" in name)
        if comparable and "sentence" not in name and data != "saturated":
            want, slope = values[base]
            # Ours normalizes its input and the others do not: compare gradients on the sphere.
            unit = inputs[0].detach()
            slope, gradient = (each - (each * unit).sum(1, keepdim=True) * unit for each in (slope, gradient))
            if abs(value - want) > 1e-5 * abs(want) or (gradient - slope).norm() > 1e-4 * slope.norm():
                raise SystemExit(f"{name} gives {value}, {base} {want}; nothing was timed")


def peak_bytes(loss: Loss, inputs: list[Tensor]) -> int:
    """Return the peak of live bytes besides the inputs, gradients included."""
    for each in inputs:
        each.grad = None
    with PeakBytes() as memory:
        loss(*inputs).backward()
    return memory.peak


def measure_products(width: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the row of torch's product of 1,024 queries and keys, a third of the products of a dense form."""
    queries, keys, _ = views(1024, width, "random")
    out = torch.empty(1024, 1024)
    times = []
    for _ in range(10 * options.repeats):
        cpu = time.process_time()
        torch.mm(queries, keys.T, out=out)
        times.append(time.process_time() - cpu)
    row = {
        "name": "torch.mm", "pairs": 1024, "width": width, "scale": 1.0, "data": "random", "threads": options.threads,
        "cpu_s": statistics.median(times), "cpu_min_s": min(times), "load": os.getloadavg()[0],
    }  # fmt: skip
    report(row)
    return row


def measure_ranks(ranks: int, pairs: int, width: int, algorithm: str) -> dict[str, Any]:
    """Return one row for gloo ranks on this machine: CPU seconds and bytes sent, each the largest of any rank."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (ranks, pairs, width, algorithm, folder), nprocs=ranks)
        parts = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(ranks)]
    row = {
        "name": f"ours ntxent, {algorithm}, {ranks} ranks, bf16 wire", "pairs": pairs, "width": width, "scale": 14.0,
        "data": "random", "threads": 1, "load": os.getloadavg()[0],
        **{key: max(part[key] for part in parts) for key in ("cpu_s", "wall_s", "bytes_sent")},
    }  # fmt: skip
    row["bytes_per_pair_and_dimension"] = row["bytes_sent"] / pairs / width
    report(row)
    return row


def _rank(rank: int, ranks: int, pairs: int, width: int, algorithm: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    queries, keys, ids = (each.tensor_split(ranks)[rank] for each in views(pairs, width, "random"))
    inputs = [queries.requires_grad_(), keys.requires_grad_(), torch.tensor(14.0, requires_grad=True)]
    counted = Ranks.of(None)

    def loss(q: Tensor, k: Tensor, s: Tensor) -> Tensor:
        return contrastive_loss(
            q,
            k,
            s,
            query_concept_ids=ids,
            key_concept_ids=ids,
            communication=algorithm,
            communication_dtype=torch.bfloat16,
            group=counted,
        )

    cpu, wall = min(run(loss, inputs) for _ in range(2))
    figures = {"cpu_s": cpu, "wall_s": wall, "bytes_sent": counted.bytes_sent // 2}
    (Path(folder) / f"{rank}.json").write_text(json.dumps(figures))
    dist.barrier()
    dist.destroy_process_group()


def measure_many(pairs: int) -> dict[str, Any]:
    """Return the row of many pairs of width 256 in bfloat16, with the peak of this process's resident memory."""
    *features, ids = views(pairs, 256, "random")
    inputs = [*(each.bfloat16().requires_grad_() for each in features), torch.tensor(14.0, requires_grad=True)]
    features.clear()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")

    def loss(q: Tensor, k: Tensor, s: Tensor) -> Tensor:
        return contrastive_loss(
            q, k, s, query_concept_ids=ids, key_concept_ids=ids, kind="clip", communication_dtype=torch.bfloat16
        )

    cpu, wall = run(loss, inputs)
    row = {
        "name": "ours clip, bf16 features", "pairs": pairs, "width": 256, "scale": 14.0, "data": "random",
        "threads": torch.get_num_threads(), "load": os.getloadavg()[0],
        "cpu_s": cpu, "wall_s": wall, "peak_bytes": most_resident(),
    }  # fmt: skip
    report(row)
    return row


def most_resident() -> int:
    """Return the peak of resident bytes since /proc/self/clear_refs was written."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024


def report(row: dict[str, Any]) -> None:
    """Print one line of the table."""
    extra = f"{row['of_dense']:6.2f} x dense" if row.get("of_dense") else ""
    extra += f"  peak {row['peak_bytes'] / 2**20:9.1f} MiB" if "peak_bytes" in row else ""
    extra += f"  sent {row['bytes_per_pair_and_dimension']:5.2f} N d" if "bytes_sent" in row else ""
    print(
        f"N {row['pairs']:>8}  d {row['width']:>4}  scale {row['scale']:>5}  {row['data']:<9}  {row['name']:<42}"
        f"  cpu {row['cpu_s']:8.3f} s  {extra}",
        flush=True,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="*", default=[256, 1024, 4096])
    parser.add_argument("--width", type=int, nargs="+", default=[256, 768])
    parser.add_argument("--scale", type=float, nargs="+", default=[14.0, 50.0, 100.0])
    parser.add_argument("--data", nargs="+", default=["random", "saturated", "zipf"])
    parser.add_argument("--ranks", type=int, nargs="*", default=[], help="also on this many gloo ranks")
    parser.add_argument("--many", type=int, nargs="*", default=[], help="also this many pairs; a million take hours")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
