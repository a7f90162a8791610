"""Records hashes of the sample's graph and shards, and losses and gradient norms of training on it.

    python -m tests.system.figures OUT.json [RECIPE ...]

records all recipes or those named. Two recordings on one machine are equal bit for bit, so a refactoring can be checked
with it. `test_figures.py` compares with `figures.json` on any machine.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from bali_ds.config import dump_recipe, load_recipe
from bali_ds.training.trainer import train
from tests.forked import run_forked

REPOSITORY = Path(__file__).parents[2]
SOURCE = REPOSITORY / "shards/sample"
RECIPES = REPOSITORY / "launch/recipes"
STAGES = (0, 1, 2, 3)
STEPS, ABLATION_STEPS = 30, 3


def hashes(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a directory, by its path from there."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def build_sample(out: Path) -> None:
    """Build graph and shards of the sample into `out`/graph and `out`/shards, as `make train` does."""
    # In processes of their own, because threads would not survive the forks of the ranks.
    graph = ["graph", "build", "--rrf", SOURCE, "--out", out / "graph"]
    shards = ["shards", "build", "--graph", out / "graph", "--corpus", f"pubtator:{SOURCE}/corpus.pubtator"]
    shards += ["--tokenizer", SOURCE / "encoder", "--validation", "0.05", "--out", out / "shards"]
    for command in (graph, shards):
        subprocess.run([sys.executable, "-m", "bali_ds", *map(str, command)], check=True, stdout=subprocess.DEVNULL)


def write_recipes(out: Path) -> list[Path]:
    """Write the recipes whose steps are recorded, one a file."""
    own = {"name": "sample", "steps": f"{STEPS}", "epochs": "null"}
    names = {
        f"zero{stage}": ("sample", own | {"deepspeed": f"{REPOSITORY}/ds_configs/zero{stage}.json"}) for stage in STAGES
    }
    for ablation in sorted((RECIPES / "ablations").glob("*.yaml")):
        changes = {"steps": f"{ABLATION_STEPS}", "epochs": "null", "precision": "fp32"}
        names[ablation.stem] = (f"ablations/{ablation.stem}", changes)
    paths = []
    for name, (recipe, changes) in names.items():
        changes |= {"name": name, "runs": f"{out}/runs", "log_every": "1"}
        changes |= {"data.graph": f"{out}/graph", "data.shards": f"{out}/shards", "data.workers": "0"}
        changes |= {"text_encoder.path": f"{SOURCE}/encoder", "text_encoder.weights": "random"}
        changes |= {"evaluation.linking": "null"}
        paths.append(out / f"{name}.yaml")
        overrides = [f"{key}={value}" for key, value in changes.items()]
        paths[-1].write_text(dump_recipe(load_recipe(RECIPES / f"{recipe}.yaml", overrides)))
    return paths


def metrics(run: Path) -> dict[str, list[float]]:
    """Return the loss of each step of a run and the norms of its gradients, of the whole and of each part."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    keys = [key for key in steps[0] if key == "loss" or key.startswith("gradient_norm")]
    return {key: [step[key] for step in steps] for key in keys}


def train_recipe(path: Path) -> None:
    """Train a recipe as one of its ranks."""
    train(load_recipe(path), resume=False)


def record(out: Path, names: Collection[str] = ()) -> dict[str, Any]:
    """Build, train on two ranks and return all figures, or those of the recipes of some names."""
    build_sample(out)
    recipes = [path for path in write_recipes(out) if not names or path.stem in names]
    for path in recipes:
        run_forked(2, train_recipe, path)
    return {
        "sha256": {name: hashes(out / name) for name in ("graph", "shards")},
        "steps": {path.stem: metrics(out / "runs" / path.stem) for path in recipes},
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        figures = record(Path(folder), sys.argv[2:])
    Path(sys.argv[1]).write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")
