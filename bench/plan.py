"""Planned memory of a rank compared with the peak of training: five configurations, two CPU ranks each.

    python bench/plan.py

The planned peak is compared with a rank's peak resident memory minus that of a run with a minimal model. The C
library is configured to return freed memory, so that resident memory is memory in use. oneDNN, which multiplies bf16
matrices on CPUs, is configured not to cache kernels: it compiles 3 to 4 MiB of them for every new shape of a linear
layer and caches 1,024 shapes, which is more than these models need.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bali_ds.cli import main
from bali_ds.config import Recipe, dump_recipe
from bali_ds.files import write_json
from bali_ds.planning.run_plan import plan

REPOSITORY = Path(__file__).parents[1]
RANKS = 2
STEPS = 3
TOLERANCE = 0.15
# Trains as one rank, then prints the peak memory of this process.
RANK = """
import resource, sys
from pathlib import Path
from bali_ds.config import load_recipe
from bali_ds.training.trainer import train
train(load_recipe(Path(sys.argv[1])), resume=False)
print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, flush=True)
"""


@dataclass(frozen=True)
class Case:
    """One configuration: encoder size, batch and DeepSpeed file."""

    width: int
    layers: int
    passages: int
    micro_batches: int
    precision: str
    deepspeed: str


# Width 16 measures libraries, data and the loader.
EMPTY = Case(16, 1, 8, 1, "fp32", "zero1")
CASES = (
    Case(512, 4, 128, 1, "fp32", "zero0"),
    Case(512, 4, 128, 1, "fp32", "zero1"),
    Case(768, 4, 128, 1, "bf16", "zero2"),
    Case(768, 4, 64, 1, "fp32", "zero3"),
    Case(512, 6, 256, 2, "bf16", "zero1"),
)


def make_data(folder: Path) -> None:
    """Build graph and shards of the sample data set."""
    source = REPOSITORY / "shards/sample"
    main(["graph", "build", "--rrf", str(source), "--out", str(folder / "graph")])
    main([
        "shards", "build", "--graph", str(folder / "graph"), "--corpus", f"pubtator:{source}/corpus.pubtator",
        "--tokenizer", str(source / "encoder"), "--validation", "0.0", "--out", str(folder / "shards"),
    ])  # fmt: skip


def make_recipe(case: Case, folder: Path) -> Recipe:
    """Return the recipe of a case. Its encoder is a BERT without weights, with the tokenizer of the sample."""
    encoder = folder / f"encoder-{case.width}-{case.layers}"
    if not encoder.exists():
        encoder.mkdir()
        source = REPOSITORY / "shards/sample/encoder"
        for file in source.iterdir():
            (encoder / file.name).write_bytes(file.read_bytes())
        shape = {
            "hidden_size": case.width,
            "num_hidden_layers": case.layers,
            "num_attention_heads": max(1, case.width // 64),
            "intermediate_size": 4 * case.width,
        }
        config = json.loads((encoder / "config.json").read_text())
        (encoder / "config.json").write_text(json.dumps(config | shape))
    return Recipe.model_validate(
        {
            "name": f"{case.deepspeed}-{case.precision}-{case.width}",
            "runs": folder / "runs",
            "data": {"graph": folder / "graph", "shards": str(folder / "shards"), "workers": 0},
            "text_encoder": {"path": str(encoder), "weights": "random"},
            "batch": {"passages": case.passages, "micro_batches": case.micro_batches},
            "steps": STEPS,
            "precision": case.precision,
            "deepspeed": REPOSITORY / "ds_configs" / f"{case.deepspeed}.json",
            "checkpoints": {"every": 1000},
        }
    )


def measured(recipe: Recipe, folder: Path) -> int:
    """Return the peak resident bytes of the larger of the ranks."""
    file, script = folder / "recipe.yaml", folder / "rank.py"
    file.write_text(dump_recipe(recipe))
    script.write_text(RANK)
    environment = os.environ | {
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONWARNINGS": "ignore",
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0",
        "LRU_CACHE_CAPACITY": "1",
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(RANKS), "--master-port", "29731"]
    done = subprocess.run([*command, script, file], env=environment, capture_output=True, text=True, check=False)
    peaks = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("PEAK")]
    if len(peaks) != RANKS:
        raise RuntimeError(done.stderr[-3000:])
    return max(peaks)


def compare() -> list[dict[str, object]]:
    """Return planned and measured peaks of every case."""
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder)
        empty = make_recipe(EMPTY, folder)
        made = plan(empty, ranks=RANKS, on_gpu=False)
        libraries = measured(empty, folder) - made.memory[made.stage].peak
        print(f"a process without a model: {libraries / 2**20:.0f} MiB")
        print(f"{'configuration':32} {'planned MiB':>12} {'measured MiB':>13} {'error':>8}")
        for case in CASES:
            recipe = make_recipe(case, folder)
            made = plan(recipe, ranks=RANKS, on_gpu=False)
            planned, peak = made.memory[made.stage].peak, measured(recipe, folder) - libraries
            label = f"{case.deepspeed} {case.precision} {case.layers}x{case.width} {case.passages}/{case.micro_batches}"
            error = planned / peak - 1
            print(f"{label:32} {planned / 2**20:12.0f} {peak / 2**20:13.0f} {error:8.1%}", flush=True)
            rows.append({"configuration": label, "planned": planned, "measured": peak, "error": error})
    return rows


if __name__ == "__main__":
    results = compare()
    worst = max(abs(float(str(row["error"]))) for row in results)
    write_json(REPOSITORY / "bench/results/plan.json", {"rows": results, "worst": worst, "tolerance": TOLERANCE})
    print(f"worst error {worst:.1%}, allowed {TOLERANCE:.0%}")
    sys.exit(worst > TOLERANCE)
