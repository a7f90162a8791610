"""The linking benchmark: what training is worth for linking, read alone and in context, and what each part is worth.

    python bench/linking_quality.py                              # everything: hours on a CPU, minutes on a GPU
    python bench/linking_quality.py --variants recipe names --seeds 1 --steps 50
    python bench/linking_quality.py --sample --steps 2           # the sample data set: keeps this script running
    python bench/linking_quality.py --table                      # the table of the rows that are there

MedMentions' training abstracts are split by document: models train on 17 of 20 parts, three are held out. Weights of
scores are chosen on other documents than those that they are measured on, see bench/linking_table.py. All concepts of
the graph are candidates. Each row of the JSON is one training or one model without training, and holds which mentions
are right under each scoring; rows that are there are not computed again, and `--table` shows those that the other
options ask for. `--jobs` trainings run at a time, each in a process of its own. With `--seconds`, no training starts
after that time. On a GPU the launches of the host bound the steps of so small an encoder, so that a job for each core
pays: an H200 with 16 cores took 170 s for 23 rows, 10 or 13 at a time. See bench/linking_variants.py for the variants,
docs/results.md for the figures.
"""

import argparse
import copy
import hashlib
import json
import multiprocessing
import os
import platform
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_model, save_model  # noqa: E402

from bali_ds.files import read_json, write_json  # noqa: E402
from bali_ds.graph.knowledge_graph import KnowledgeGraph  # noqa: E402
from bali_ds.model.aligner import Aligner  # noqa: E402
from bali_ds.model.build_model import build_aligner  # noqa: E402
from bench.inputs.linking_split import CORPUS, other_corpora, prepare  # noqa: E402
from bench.inputs.medmentions import DATA, FAST, minilm  # noqa: E402
from bench.linking_scores import Material, averaged, hits, model_of, parts_of  # noqa: E402
from bench.linking_table import table  # noqa: E402
from bench.linking_variants import VARIANTS, Setting  # noqa: E402

STEPS = 240
SAMPLE = ROOT / "shards/sample"
# The small encoder of the sample has no weights of its own.
SAMPLE_CHANGES = ("optimizer.text_learning_rate=1.0e-3", "optimizer.graph_learning_rate=1.0e-3", "batch.passages=16")


def main() -> int:
    """Prepare, train, score, write rows, print the table; return 1 if a row failed."""
    options = _options()
    changes = SAMPLE_CHANGES if options.sample else tuple(FAST)
    precision = f"precision={'bf16' if options.device == 'cuda' else 'fp32'}"
    setting = Setting(options.folder, options.device, options.steps, (precision, *changes, *options.change))
    wanted = [(name, seed) for seed in range(options.seeds) for name in options.variants if seed < VARIANTS[name].seeds]
    results = read_json(options.out) if options.out.exists() else {"rows": []}
    if options.table:
        identities = [setting.identity(*task) for task in wanted]
        rows = [row for row in results["rows"] if _identity(row) in identities]
        print(table(rows, Material.open(options.folder)))
        return 0
    if options.sample:
        prepare(SAMPLE / "corpus.pubtator", SAMPLE, SAMPLE / "encoder", options.folder)
    else:
        if not (options.folder / "shuffled_shards/index.json").exists():
            prepare(options.data / CORPUS, options.data / "kg/kg_ext_umls_rrf", options.encoder, options.folder)
        if options.other_corpora:
            other_corpora(options.data, options.folder)
    if options.prepare:
        return 0
    begin = time.monotonic()
    parts = parts_of(options.folder)
    there = [_identity(row) for row in results["rows"] if row["hits"].keys() >= parts.keys()]
    tasks = [task for task in wanted if setting.identity(*task) not in there]
    failed = 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # batches have shapes of their own
        os.environ.setdefault(name, "64")
    context = multiprocessing.get_context("spawn")
    deadline = time.time() + options.seconds
    with ProcessPoolExecutor(options.jobs, context) as pool:
        running = {pool.submit(run, setting, *task, deadline): task for task in tasks}
        for future in as_completed(running):
            name, seed = running[future]
            try:
                row = future.result()
            except Exception:
                traceback.print_exc()
                failed += 1
                continue
            if row:  # in place of one that lacks a part
                others = [other for other in results["rows"] if _identity(other) != _identity(row)]
                results["rows"] = [*others, row]
                write_json(options.out, results)
            print(f"{time.monotonic() - begin:6.0f} s  {name}, seed {seed}: {_told(row)}", flush=True)
    return int(failed > 0)


def run(setting: Setting, name: str, seed: int, deadline: float) -> dict[str, Any] | None:
    """Train a variant, unless its model is kept, and score it; None after the deadline."""
    if time.time() > deadline:
        return None
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    recipe, variant = setting.recipe(VARIANTS[name], seed), VARIANTS[name]
    graph, material = KnowledgeGraph.open(recipe.data.graph), _material(setting.folder)
    start = build_aligner(recipe, 2 * graph.num_relations).to(setting.device)
    aligner, figures = _trained(setting, variant.of or name, seed, start)
    if variant.of:
        aligner = averaged(aligner, start, variant.start)
    if setting.device == "cuda":
        torch.cuda.empty_cache()  # other trainings share the memory
    begin, with_graph = time.monotonic(), variant.kind == "recipe"
    torch.set_float32_matmul_precision("high")
    model = model_of(aligner, str(setting.folder / "encoder"), with_graph=with_graph, fan_out=recipe.data.fan_out)
    found = hits(model, material, graph)
    times = {**figures, "score_seconds": time.monotonic() - begin}
    return {**setting.identity(name, seed), **times, "hits": found}


def _trained(setting: Setting, name: str, seed: int, start: Aligner) -> tuple[Aligner, dict[str, Any]]:
    """Return a trained model, in half precision as exports are, and figures of its training.

    Models are kept in the folder, so that they can be scored again without training.
    """
    from bench.linking_training import train_pairs, train_recipe

    variant, recipe = VARIANTS[name], setting.recipe(VARIANTS[name], seed)
    identity = setting.identity(name, seed)
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    file = setting.folder / "trained" / f"{digest}.safetensors"
    if variant.kind == "untrained":
        return start, {"tokens": 0, "train_seconds": 0.0}
    if not file.exists():
        begin = time.monotonic()
        if variant.kind == "recipe":
            trained = train_recipe(recipe, setting.device)
        else:
            mentions = _material(setting.folder).training if variant.mentions else None
            trained = train_pairs(recipe, setting.device, mentions)
        seconds = time.monotonic() - begin
        figures = {"tokens": trained.tokens, "train_seconds": seconds, "precision": recipe.precision}
        figures |= _machine(setting.device)
        file.parent.mkdir(exist_ok=True)
        partial = file.with_suffix(".partial")
        save_model(trained.aligner.half(), str(partial), {"figures": json.dumps(identity | figures)})
        partial.rename(file)
    aligner = copy.deepcopy(start)
    load_model(aligner, file)
    with safe_open(file, "pt") as stored:
        figures = json.loads(stored.metadata()["figures"])
    return aligner, {key: figures[key] for key in ("tokens", "train_seconds", "precision", "device", "torch")}


@cache
def _material(folder: Path) -> Material:
    return Material.open(folder)


def _told(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not started, no time was left"
    return f"{row['train_seconds']:.1f} s training, {row['tokens']:,} tokens, {row['score_seconds']:.1f} s scoring"


def _identity(row: dict[str, Any]) -> dict[str, Any]:
    """Return what a row was made with, as `Setting.identity` does."""
    return {key: row[key] for key in ("variant", "seed", "steps", "changes")}


def _machine(device: str) -> dict[str, str]:
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return {"device": name, "torch": torch.__version__}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="directory of the real data")
    parser.add_argument("--encoder", type=Path, default=minilm())
    parser.add_argument(
        "--folder", type=Path, help="directory of everything prepared (default: shards/built/linking_quality)"
    )
    parser.add_argument("--sample", action="store_true", help="on the sample data set")
    parser.add_argument("--prepare", action="store_true", help="only prepare the folder")
    parser.add_argument(
        "--other-corpora", action="store_true", help="also score on the development mentions of NCBI Disease and BC5CDR"
    )
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time (default: %(default)s)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no training after this time")
    parser.add_argument("--change", nargs="*", default=[], metavar="key=value", help="to the recipe of every variant")
    parser.add_argument(
        "--out", type=Path, help="JSON file (default: in bench/results, or in the folder for the sample)"
    )
    options = parser.parse_args()
    kind = "sample" if options.sample else "linking"
    options.folder = options.folder or ROOT / "shards/built" / f"{kind}_quality"
    recorded = options.folder / "results.json" if options.sample else ROOT / "bench/results/linking_quality.json"
    options.out = options.out or recorded
    return options


if __name__ == "__main__":
    sys.exit(main())
