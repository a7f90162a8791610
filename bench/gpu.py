"""Prove and measure the trainer on one GPU, part by part, the most valuable first.

    python bench/gpu.py                          # all parts, under seven minutes on one GPU
    python bench/gpu.py --parts loss_speed step  # some of them
    python bench/gpu.py --device cpu --small     # the same code on small shapes: keeps this script running

The JSON is written after every part, so that a run that is cut off keeps what it has. A part that fails is recorded
with its error and the others go ahead; the exit status is then 1. Graph and shards of the sample data set are built
where they are missing (`make train` builds them too).
"""

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from bali_ds.config import Recipe, dump_recipe
from bali_ds.data.batch import Batch, PackedSequences
from bali_ds.data.loader import Loader
from bali_ds.files import write_json
from bali_ds.model.aligner import Aligner
from bali_ds.model.build_model import build_aligner, compile_layers
from bali_ds.planning.flops import StepFlops, peak_of
from bali_ds.planning.run_plan import plan
from bali_ds.training.run_directory import RunData

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "shards/sample"
sys.path.insert(0, str(ROOT))  # the loss has a file of its own, with the dense losses of the tests as the oracle

from bench.gpu_loss import loss_blocks, loss_oracle, loss_speed  # noqa: E402

# Training alone, without export, evaluation and report.
TRAIN = """
import sys
from pathlib import Path
from bali_ds.config import load_recipe
from bali_ds.training.trainer import train
import torch
train(load_recipe(Path(sys.argv[1])), resume=False)
print("PEAK", torch.cuda.max_memory_allocated())
"""
BERT_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
BERT_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
Figures = dict[str, Any]


@dataclass
class Bench:
    """What all parts share.

    Attributes:
        device: "cuda" or "cpu".
        small: shapes that take seconds on a CPU.
        data: directory with `graph` and `shards` of the sample data set.
        folder: temporary directory for encoders, recipes and runs.
    """

    device: str
    small: bool
    data: Path
    folder: Path

    def encoder(self, shape: dict[str, int]) -> Path:
        """Return the directory of a BERT of a shape, without weights, with the sample's tokenizer."""
        path = self.folder / f"encoder-{shape['hidden_size']}-{shape['num_hidden_layers']}"
        if not path.exists():
            shutil.copytree(SAMPLE / "encoder", path)
            configuration = json.loads((path / "config.json").read_text())
            (path / "config.json").write_text(json.dumps(configuration | shape))
        return path

    def recipe(self, name: str, shape: dict[str, int], **changes: Any) -> Recipe:
        """Return a recipe on the sample; keys of `changes` replace whole sections."""
        values: dict[str, Any] = {
            "name": name,
            "runs": self.folder / "runs",
            "data": {"graph": self.data / "graph", "shards": str(self.data / "shards"), "workers": 0},
            "text_encoder": {"path": str(self.encoder(shape)), "compile": False, **changes.pop("text_encoder", {})},
            "optimizer": {"text_learning_rate": 1e-4, "graph_learning_rate": 1e-4},
            "batch": {"passages": 16},
            "steps": 5,
            "precision": "fp32",
            "deepspeed": ROOT / "ds_configs/zero1.json",
            "log_every": 1,
        }
        return Recipe.model_validate(values | changes)

    def aligner(self, recipe: Recipe) -> tuple[Aligner, Loader]:
        """Return the model of a recipe in its precision on the device, and its loader."""
        data = RunData.open(recipe)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[recipe.precision]
        aligner = build_aligner(recipe, 2 * data.graph.num_relations, data.shards).to(self.device, dtype).train()
        return aligner, data.loader(recipe, rank=0, world_size=1)

    def train(self, recipe: Recipe, *, stop_after: int = 0, whole: bool = True) -> tuple[int, list[float], str]:
        """Run a recipe as its only rank.

        Args:
            recipe: the run.
            stop_after: after this step the run's stop file is touched; 0 lets the run end by itself.
            whole: run launch/train.py, with export, evaluation and report; otherwise train alone.

        Returns:
            The exit status, the loss of each step, and the output.
        """
        file, metrics = self.folder / f"{recipe.name}.yaml", recipe.directory / "metrics.jsonl"
        with socket.socket() as free:  # several runs at a time must not meet at one port
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        file.write_text(dump_recipe(recipe))
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"PYTHONPATH": paths, "MASTER_PORT": port}
        if self.device == "cpu":
            environment |= {"DS_ACCELERATOR": "cpu"}
        arguments = [str(ROOT / "launch/train.py"), "--config"] if whole else ["-c", TRAIN]
        command = [sys.executable, *arguments, str(file)]
        with subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as run:
            while stop_after and run.poll() is None:
                if metrics.exists() and len(metrics.read_text().splitlines()) >= stop_after:
                    (recipe.directory / "stop").touch()
                    break
                time.sleep(0.05)
            output = run.communicate(timeout=300)[0]
        lines = map(json.loads, metrics.read_text().splitlines()) if metrics.exists() else ()
        return run.returncode, [line["loss"] for line in lines if "loss" in line], output

    def train_all(self, recipes: Sequence[Recipe]) -> list[tuple[int, list[float], str]]:
        """Train several recipes at the same time; return what `train` returns of each."""
        with ThreadPoolExecutor(len(recipes) if self.device == "cuda" else 1) as pool:
            return list(pool.map(lambda recipe: self.train(recipe, whole=False), recipes))

    def seconds(self, work: Callable[[], Any], repeats: int = 5) -> float:
        """Return the median seconds of some work, after one warm-up; the device's own clock on a GPU."""
        work()
        times = []
        for _ in range(repeats):
            if self.device == "cpu":
                begin = time.perf_counter()
                work()
                times.append(time.perf_counter() - begin)
                continue
            begin_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            begin_event.record()
            work()
            end_event.record()
            torch.cuda.synchronize()
            times.append(begin_event.elapsed_time(end_event) / 1000)
        return statistics.median(times)


def random_state(bench: Bench) -> Figures:
    """Dropout under micro-batches: recomputation must repeat the masks of the forward pass."""
    recipe = bench.recipe("micro", TINY, batch={"passages": 16, "micro_batches": 2})
    aligner, loader = bench.aligner(recipe)
    with loader:
        micro_batches = [each.to(torch.device(bench.device)) for each in next(loader).micro_batches]

    def gradients() -> list[Tensor]:
        aligner.zero_grad()
        torch.manual_seed(3)
        aligner(micro_batches)[0].backward()
        return [parameter.grad.clone() for parameter in aligner.parameters() if parameter.grad is not None]

    recomputed = gradients()
    with mock.patch("bali_ds.model.aligner.checkpoint", lambda run, *given, **_: run(*given)):
        kept = gradients()
    # relative to all gradients: those of key biases are 0 but for rounding, which differs between runs on a GPU
    whole = torch.stack([gradient.norm() for gradient in kept]).norm()
    error = max(float((a - b).norm() / whole) for a, b in zip(recomputed, kept, strict=True))
    assert error < 1e-4, f"gradients of recomputed micro-batches are off by {error:.1e}"
    return {"relative_error": error}


def training(bench: Bench) -> Figures:
    """Five steps of the sample, then a run that its stop file ends and that resumes: exit statuses and losses."""
    small = {"validation": {"passages": 32}}
    whole = bench.recipe("whole", TINY, **small)
    status, losses, output = bench.train(whole)
    assert status == 0, output[-2000:]
    assert len(losses) == whole.steps, losses
    stopped = bench.recipe("stopped", TINY, steps=40, **small)
    first, before, output = bench.train(stopped, stop_after=3)
    assert first == 75, output[-2000:]
    second, after, output = bench.train(stopped)
    assert second == 0, output[-2000:]
    assert after[: len(before)] == before, "the resumed run rewrote its past"
    return {"losses": losses, "statuses": [status, first, second], "resumed_after": len(before)}


def stages(bench: Bench) -> Figures:
    """ZeRO 0 to 3 take the same steps."""
    still = {"dropout": 0.0}
    recipes = [
        bench.recipe(f"zero{stage}", TINY, deepspeed=ROOT / f"ds_configs/zero{stage}.json", text_encoder=still)
        for stage in range(4)
    ]
    losses = {}
    for recipe, (status, found, output) in zip(recipes, bench.train_all(recipes), strict=True):
        assert status == 0, output[-2000:]
        losses[recipe.name] = found
        worst = max(abs(a / b - 1) for a, b in zip(found, losses["zero0"], strict=True))
        assert worst < 1e-4, f"{recipe.name} is off by {worst:.1e}"
    return {"losses": losses}


def repeats(bench: Bench) -> Figures:
    """With `deterministic` two runs in bfloat16 take the same steps bit for bit; without, how far they are apart."""
    precision = "bf16" if bench.device == "cuda" else "fp32"
    recipes = [
        bench.recipe(f"repeat-{number}-{deterministic}", TINY, deterministic=deterministic, precision=precision)
        for deterministic in (True, False)
        for number in (1, 2)
    ]
    runs = bench.train_all(recipes)
    for status, _, output in runs:
        assert status == 0, output[-2000:]
    first, second, third, fourth = (losses for _, losses, _ in runs)
    assert first == second, (first, second)
    return {"losses": first, "difference_without": max(abs(a - b) for a, b in zip(third, fourth, strict=True))}


def memory(bench: Bench) -> Figures:
    """What `bali-ds plan` says of a rank's memory against the peak of real steps, BERT-base and BERT-large."""
    large = TINY if bench.small else BERT_LARGE
    passages = 16 if bench.small else 256
    recipes = [
        bench.recipe("base-zero1", TINY if bench.small else BERT_BASE, batch={"passages": passages}, steps=3),
        bench.recipe("large-zero2-micro-batches", large, batch={"passages": passages, "micro_batches": 2}, steps=3),
        bench.recipe(
            "large-zero3-checkpointing", large, batch={"passages": passages}, steps=3,
            text_encoder={"gradient_checkpointing": True},
        ),
    ]  # fmt: skip
    recipes = [
        recipe.model_copy(update={"precision": "bf16", "deepspeed": ROOT / f"ds_configs/zero{stage}.json"})
        for recipe, stage in zip(recipes, (1, 2, 3), strict=True)
    ]
    rows = {}
    for recipe, (status, _, output) in zip(recipes, bench.train_all(recipes), strict=True):
        assert status == 0, output[-2000:]
        made = plan(recipe, ranks=1, on_gpu=bench.device == "cuda")
        planned = made.memory[made.stage].peak
        measured = int(output.rpartition("PEAK ")[2].split()[0])
        rows[recipe.name] = {
            "planned": planned,
            "measured": measured,
            "error": planned / measured - 1 if measured else 0,
        }
    return {"rows": rows}


@contextmanager
def _peak_memory(bench: Bench, row: Figures, name: str) -> Iterator[None]:
    if bench.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    yield
    if bench.device == "cuda":
        row[f"{name} bytes"] = torch.cuda.max_memory_allocated()


def step(bench: Bench) -> Figures:
    """A training step of BERT-base in bfloat16: time, model FLOPs utilization, kernels, synchronizations."""
    rows = {}
    for tokens in (None, 128):
        for compiled in (False, True) if bench.device == "cuda" else (False,):
            name = f"{tokens or 'sampled'} tokens, {'compiled' if compiled else 'eager'}"
            rows[name] = _step(bench, TINY if bench.small else BERT_BASE, 16 if bench.small else 256, tokens, compiled)
            print(f"  {name}: { ({key: value for key, value in rows[name].items() if key != 'longest'}) }", flush=True)
    return {"rows": rows}


def _step(bench: Bench, shape: dict[str, int], passages: int, tokens: int | None, compiled: bool) -> Figures:
    """Measure steps of a shape; `tokens` are those of every passage, None for the lengths of the sample."""
    recipe = bench.recipe("step", shape, batch={"passages": passages}, precision="bf16")
    aligner, loader = bench.aligner(recipe)
    with loader:
        steps = [made.micro_batches for made in islice(loader, 2)]
    if tokens:
        steps = [[_lengthened(each, tokens) for each in micro_batches] for micro_batches in steps]
    if compiled:
        compile_layers(aligner.text)
    counted = [StepFlops.of(aligner).count(each) for micro_batches in steps for each in micro_batches]
    steps = [[each.to(torch.device(bench.device)) for each in micro_batches] for micro_batches in steps]
    optimizer = torch.optim.AdamW(aligner.parameters(), lr=1e-5, fused=bench.device == "cuda")

    def work() -> None:
        for micro_batches in steps:
            aligner(micro_batches)[0].backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    begin = time.perf_counter()
    work()
    first = time.perf_counter() - begin
    with _peak_memory(bench, figures := {}, "peak"):
        seconds = bench.seconds(work) / len(steps)
    tokens_read, operations = (sum(column) / len(steps) for column in zip(*counted, strict=True))
    figures |= {"passages": passages, "tokens": tokens_read, "seconds": seconds, "first_seconds": first}
    figures["teraflops"] = operations / seconds / 1e12
    if bench.device == "cuda":
        if peak := peak_of(torch.cuda.get_device_name()):
            figures["mfu"] = operations / seconds / peak
        figures |= _profiled(work) | {"synchronizations": _synchronizations(work)}
    return figures


def _lengthened(batch: Batch, tokens: int) -> Batch:
    """Return a batch whose passages have as many tokens each, a share of 15 % of them labeled."""
    count = len(batch.passages.lengths)
    ids = batch.passages.input_ids.repeat(-(-count * tokens // len(batch.passages.input_ids)))[: count * tokens]
    lengths = torch.full((count,), tokens)
    offsets = F.pad(lengths.cumsum(0), (1, 0))
    labeled = torch.arange(0, len(ids), 7)
    return replace(
        batch,
        passages=PackedSequences(ids, torch.arange(tokens).repeat(count), offsets, lengths),
        labeled_tokens=labeled,
        labels=ids[labeled],
    )


def _profiled(work: Callable[[], None]) -> Figures:
    """Return the share of wall time in which a kernel ran, and the kernels that took longest."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        work()
        torch.cuda.synchronize()
    wall = time.perf_counter() - begin
    events = sorted(profile.key_averages(), key=lambda each: -each.device_time_total)
    total = sum(each.device_time_total for each in events) / 1e6
    kernels = [{"name": each.key[:80], "count": each.count, "ms": each.device_time_total / 1e3} for each in events[:20]]
    return {"kernel_share": total / wall, "kernels": sum(each.count for each in events), "longest": kernels}


def _synchronizations(work: Callable[[], None]) -> list[str]:
    """Return the places at which the host waits for the device, with the innermost lines of this package."""
    torch.cuda.set_sync_debug_mode("warn")
    places: list[str] = []

    def note(message: Any, *_: Any, **__: Any) -> None:
        frames = [f for f in traceback.extract_stack() if "bali_ds" in f.filename or "deepspeed" in f.filename]
        places.append(f"{frames[-1].filename}:{frames[-1].lineno}" if frames else str(message)[:80])

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            with mock.patch("warnings.showwarning", note):
                work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [f"{place} x{places.count(place)}" for place in dict.fromkeys(places)]


def inference(bench: Bench) -> Figures:
    """The exported encoder of the `training` part gives on the device the vectors that it gives on the CPU."""
    from bali_ds.inference.encoder import load

    export = bench.folder / "runs/whole/export"
    assert export.exists(), "the part `training` has not run or failed"
    texts = [f"chronic renal failure {number} with anemia" * (1 + number % 5) for number in range(64)]
    on_cpu, on_device = (load(export, device=device).encode(texts) for device in ("cpu", bench.device))
    error = float(abs(on_cpu - on_device).max())
    assert error < 5e-3, f"vectors are off by {error:.1e}"
    encoder = load(export, device=bench.device)
    return {"largest_difference": error, "texts_per_second": len(texts) / bench.seconds(lambda: encoder.encode(texts))}


PARTS: dict[str, Callable[[Bench], Figures]] = {
    "random_state": random_state,
    "loss_oracle": loss_oracle,
    "training": training,
    "loss_speed": loss_speed,
    "step": step,
    "stages": stages,
    "repeats": repeats,
    "memory": memory,
    "inference": inference,
}
ALL_PARTS = PARTS | {"loss_blocks": loss_blocks}
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
        for name in options.parts:
            begin = time.perf_counter()
            try:
                figures = {"passed": True, **ALL_PARTS[name](bench)}
            except Exception as error:
                traceback.print_exc()
                figures = {"passed": False, "error": f"{type(error).__name__}: {error}"[:2000]}
            results["parts"][name] = figures | {"part_seconds": time.perf_counter() - begin}
            write_json(options.out, results)
            print(f"{name:<16}{'passed' if figures['passed'] else 'FAILED':<8}{time.perf_counter() - begin:6.1f} s")
    return int(not all(part["passed"] for part in results["parts"].values()))


def _build(data: Path) -> None:
    if not (data / "shards/index.json").exists():
        from bali_ds.cli import main as bali_ds

        bali_ds(["graph", "build", "--rrf", str(SAMPLE), "--out", str(data / "graph")])
        bali_ds([
            "shards", "build", "--graph", str(data / "graph"), "--corpus", f"pubtator:{SAMPLE}/corpus.pubtator",
            "--tokenizer", str(SAMPLE / "encoder"), "--validation", "0.05", "--out", str(data / "shards"),
        ])  # fmt: skip


def _machine(device: str) -> Figures:
    from importlib.metadata import version

    card = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    packages = {name: version(name) for name in ("torch", "deepspeed", "transformers")}
    return {"device": card, "date": date.today().isoformat(), "cuda": torch.version.cuda, **packages}


if __name__ == "__main__":
    sys.exit(main())
