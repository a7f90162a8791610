"""What the parts of gpu.py share: recipes, models and runs on the sample data set, and a clock."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bali_ds.config import Recipe, dump_recipe
from bali_ds.data.loader import Loader
from bali_ds.model.aligner import Aligner
from bali_ds.model.build_model import build_aligner, transformer_layers
from bali_ds.model.fused_layer import fuse_layers
from bali_ds.model.text_encoder import TextEncoder
from bali_ds.planning.flops import peak_of
from bali_ds.planning.run_data import RunData
from tests.ports import free_port

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "shards/sample"
BERT_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
BERT_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
KERNEL_REPEATS = 5
FASTEST = {"fused_layers": True}  # as recipes have it
Figures = dict[str, Any]
LAYER_CODE: dict[str, Callable[[TextEncoder], Any]] = {
    "eager": lambda _text: None,
    "fused": lambda text: fuse_layers(transformer_layers(text.encoder)),
}
"""The kinds of code that the layers of an encoder may have."""

# Training alone, without export, evaluation and report.
TRAIN = """
import sys
from pathlib import Path
from bali_ds.config import load_recipe
from bali_ds.training.trainer import train
train(load_recipe(Path(sys.argv[1])), resume=False)
"""


def profiled(work: Callable[[], Any], *, repeats: int = 1, longest: int = 0) -> Figures:
    """Return seconds and number of the kernels of some work on a GPU, and the count and milliseconds of the longest."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(repeats):
            work()
        torch.cuda.synchronize()
    kernels = [each for each in profile.key_averages() if not each.key.startswith("cuda")]
    kernels.sort(key=lambda each: -each.device_time_total)
    rows = {each.key: [each.count / repeats, each.device_time_total / 1e3 / repeats] for each in kernels[:longest]}
    return {
        "kernel_seconds": sum(each.device_time_total for each in kernels) / 1e6 / repeats,
        "kernels": sum(each.count for each in kernels) / repeats,
        **({"longest": rows} if longest else {}),
    }


@dataclass
class Bench:
    """What all parts share.

    Attributes:
        device: "cuda" or "cpu".
        small: shapes that take seconds on a CPU.
        data: directory with `graph` and `shards` of the sample data set.
        folder: temporary directory for encoders, recipes and runs.
        lock: held while an encoder or the figures are written; parts may run in threads.
    """

    device: str
    small: bool
    data: Path
    folder: Path
    lock: threading.Lock = field(default_factory=threading.Lock)

    def encoder(self, shape: dict[str, int]) -> Path:
        """Return the directory of a BERT of a shape, without weights, with the sample's tokenizer."""
        path = self.folder / f"encoder-{shape['hidden_size']}-{shape['num_hidden_layers']}"
        with self.lock:
            if not path.exists():
                shutil.copytree(SAMPLE / "encoder", path)
                configuration = json.loads((path / "config.json").read_text())
                (path / "config.json").write_text(json.dumps(configuration | shape))
        return path

    def files(self, *, workers: int) -> dict[str, Any]:
        """Return the section `data` of a recipe."""
        return {"graph": self.data / "graph", "shards": str(self.data / "shards"), "workers": workers}

    def recipe(self, name: str, shape: dict[str, int], **changes: Any) -> Recipe:
        """Return a recipe on the sample; keys of `changes` replace whole sections."""
        values: dict[str, Any] = {
            "name": name,
            "runs": self.folder / "runs",
            "data": self.files(workers=0),
            "text_encoder": {"path": str(self.encoder(shape)), "weights": "random", "fused_layers": False}
            | changes.pop("text_encoder", {}),
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
        file.write_text(dump_recipe(recipe))
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"PYTHONPATH": paths, "MASTER_PORT": str(free_port())}
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

    def kernel_seconds(self, work: Callable[[], Any]) -> float:
        """Return the time that the kernels of some work take on a GPU, without the gaps between them."""
        work()
        seconds: float = profiled(work, repeats=KERNEL_REPEATS)["kernel_seconds"]
        return seconds

    def utilization(self, operations: float, seconds: float) -> Figures:
        """Return the rate of some work, and its share of the card's peak (`mfu`) where that is known."""
        rate = operations / seconds
        peak = peak_of(torch.cuda.get_device_name()) if self.device == "cuda" else None
        return {"teraflops": rate / 1e12, **({"mfu": rate / peak} if peak else {})}

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
