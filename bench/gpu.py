"""Prove and measure the trainer on one GPU, part by part, the most valuable first.

    python bench/gpu.py                          # all parts, under seven minutes on one GPU
    python bench/gpu.py --parts loss_speed step  # some of them
    python bench/gpu.py --device cpu --small     # the same code on small shapes: keeps this script running

The JSON is written after every part, so that a run that is cut off keeps what it has. A part that fails is recorded
with its error and the others go ahead; the exit status is then 1. Graph and shards of the sample data set are built
where they are missing (`make train` builds them too).
"""

import argparse
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import torch

from bali_ds.cli import main as bali_ds
from bali_ds.doctor.machine import package_versions
from bali_ds.files import write_json

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the parts, and the oracles of the tests that they use

from bench.gpu_bench import ROOT, SAMPLE, Bench, Figures
from bench.gpu_encoder import attention, encoder, inference, layer
from bench.gpu_engine import engine
from bench.gpu_loss import loss_blocks, loss_oracle, loss_speed
from bench.gpu_ranks import ranks, sanitizer
from bench.gpu_runs import repeats, stages, training
from bench.gpu_step import random_state, step

Parts = dict[str, Callable[[Bench], Figures]]
GROUPS: tuple[Parts, ...] = (
    {"engine": engine},
    {"training": training, "ranks": ranks},
    {"inference": inference},  # of what training has exported
    {"step": step},
    {"loss_speed": loss_speed},
    {"encoder": encoder},
    {"random_state": random_state},
    {"loss_oracle": loss_oracle},
    {"layer": layer},
    {"attention": attention},
    {"stages": stages, "repeats": repeats, "sanitizer": sanitizer},
)
"""The parts in their order. On a GPU those that share a group run at the same time; none of them measures time."""
NAMED: tuple[Parts, ...] = ({"loss_blocks": loss_blocks},)
"""Parts that run only if they are named."""
PARTS: Parts = {name: part for group in (*GROUPS, *NAMED) for name, part in group.items()}
DEFAULT = [name for group in GROUPS for name in group]


def main() -> int:
    """Run the parts, print and write their figures; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="shapes that take seconds on a CPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=DEFAULT)
    parser.add_argument(
        "--data", type=Path, default=ROOT / "shards/built/sample", help="graph and shards of the sample"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/gpu.json")
    options = parser.parse_args()
    data = options.data.resolve()  # recipes are in another folder
    _build(data)
    results: Figures = {"machine": _machine(options.device), "parts": {}}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.device, options.small, data, Path(folder))

        def run(name: str) -> None:
            figures = _figures(name, bench)
            with bench.lock:
                results["parts"][name] = figures
                write_json(options.out, results)

        with ThreadPoolExecutor(max(map(len, GROUPS))) as pool:
            for group in (*GROUPS, *NAMED):
                names = [name for name in group if name in options.parts]
                together = options.device == "cuda" and len(names) > 1
                list(pool.map(run, names) if together else map(run, names))
    return int(not all(part["passed"] for part in results["parts"].values()))


def _figures(name: str, bench: Bench) -> Figures:
    begin = time.perf_counter()
    try:
        figures = {"passed": True, **PARTS[name](bench)}
    except Exception as error:
        traceback.print_exc()
        figures = {"passed": False, "error": f"{type(error).__name__}: {error}"[:2000]}
    seconds = time.perf_counter() - begin
    print(f"{name:<16}{'passed' if figures['passed'] else 'FAILED':<8}{seconds:6.1f} s", flush=True)
    return figures | {"part_seconds": seconds}


def _build(data: Path) -> None:
    if not (data / "shards/index.json").exists():
        bali_ds(["graph", "build", "--rrf", str(SAMPLE), "--out", str(data / "graph")])
        bali_ds([
            "shards", "build", "--graph", str(data / "graph"), "--corpus", f"pubtator:{SAMPLE}/corpus.pubtator",
            "--tokenizer", str(SAMPLE / "encoder"), "--validation", "0.05", "--out", str(data / "shards"),
        ])  # fmt: skip


def _machine(device: str) -> Figures:
    card = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return {"device": card, "date": date.today().isoformat(), "cuda": torch.version.cuda, **package_versions()}


if __name__ == "__main__":
    sys.exit(main())
