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
from importlib.metadata import version
from pathlib import Path

import torch

from bali_ds.cli import main as bali_ds
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
TIMED: Parts = {
    "random_state": random_state,
    "loss_oracle": loss_oracle,
    "layer": layer,
    "loss_speed": loss_speed,
    "step": step,
    "attention": attention,
    "encoder": encoder,
    "engine": engine,
}
"""Parts that have the machine for themselves."""
RUNS: Parts = {"training": training, "stages": stages, "repeats": repeats, "ranks": ranks}
"""Parts that wait for runs in processes of their own; on a GPU all at the same time."""
LAST: Parts = {"inference": inference}
"""Parts that need what runs leave."""
PARTS = TIMED | RUNS | LAST
ALL_PARTS = PARTS | {"loss_blocks": loss_blocks, "sanitizer": sanitizer}
"""With those that run only if they are named."""


def main() -> int:
    """Run the parts, print and write their figures; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="shapes that take seconds on a CPU")
    parser.add_argument("--parts", nargs="+", choices=ALL_PARTS, default=list(PARTS))
    parser.add_argument(
        "--data", type=Path, default=ROOT / "shards/built/sample", help="graph and shards of the sample"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/gpu.json")
    options = parser.parse_args()
    _build(options.data)
    results: Figures = {"machine": _machine(options.device), "parts": {}}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.device, options.small, options.data, Path(folder))

        def run(name: str) -> None:
            figures = _figures(name, bench)
            with bench.lock:
                results["parts"][name] = figures
                write_json(options.out, results)

        chosen = [name for name in ALL_PARTS if name in options.parts]
        with ThreadPoolExecutor(len(RUNS) if options.device == "cuda" else 1) as pool:
            for name in chosen:
                if name not in RUNS | LAST:
                    run(name)
            list(pool.map(run, [name for name in chosen if name in RUNS]))
            list(map(run, [name for name in chosen if name in LAST]))
    return int(not all(part["passed"] for part in results["parts"].values()))


def _figures(name: str, bench: Bench) -> Figures:
    begin = time.perf_counter()
    try:
        figures = {"passed": True, **ALL_PARTS[name](bench)}
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
    packages = {name: version(name) for name in ("torch", "deepspeed", "transformers")}
    return {"device": card, "date": date.today().isoformat(), "cuda": torch.version.cuda, **packages}


if __name__ == "__main__":
    sys.exit(main())
