"""Ablations: trains the recipes of launch/recipes/ablations with one budget and the same seeds.

python bench/ablations.py [key=value ...] [--data DIR] [--encoder DIR] [--seeds 3] [--ablations joint dual ...]
python bench/ablations.py --sample --seeds 1 steps=4

Trains each on two CPU ranks and measures linking on the development mentions of MedMentions (with --sample: on the
queries of the sample data set; encoders in bfloat16) and retrieval on held-out passages. Writes
bench/results/ablations.json and keeps the rows of other ablations with the same budget. Complete runs of the same
recipe are reused, interrupted ones resume. key=value changes every recipe and replaces the default budget of 40 steps
and three layers, about five minutes per run.
"""

import argparse
import math
import statistics
from pathlib import Path
from typing import Any

import torch
import yaml
from inputs.medmentions import DATA, FAST, ROOT, build, linking_files, minilm, train

from bali_ds.config import load_recipe
from bali_ds.evaluation.linking import evaluate_linking
from bali_ds.evaluation.linking_data import read_queries
from bali_ds.files import read_json, write_json
from bali_ds.inference.concept_dictionary import read_dictionary
from bali_ds.inference.encoder import Encoder, load
from bali_ds.model.pretrained import load_tokenizer
from bali_ds.model.text_encoder import load_text_encoder

RECIPES = ROOT / "launch" / "recipes" / "ablations"
SUBSETS = ("all", "unique_not_exact")
BUDGET = ["steps=40", "text_encoder.layer=3"]
BASE = "joint"  # always trained: the others are compared with it, seed by seed
LINKING = "linking.json"
# 97.5 % points of Student's t, by the number of seeds
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}


def main() -> None:
    """Train, evaluate, print the table."""
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    parser = argparse.ArgumentParser(description="Compare the ablations.")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--encoder", type=Path, default=minilm())
    parser.add_argument("--sample", action="store_true", help="on the sample data set, for a look at the bench itself")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ablations", nargs="+", choices=names, default=names)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()
    options.overrides = options.overrides or BUDGET
    kind = "sample" if options.sample else "medmentions"
    encoder, files, common = _sample() if options.sample else _medmentions(options)
    common = [f"text_encoder.path={encoder}", *common, *options.overrides]
    for seed in range(options.seeds):
        for name in dict.fromkeys([BASE, *options.ablations]):
            run = f"ablation-{kind}-{name}-{seed}"
            _train(name, [*common, f"name={run}", f"seed={29 + seed}"])
            figures = ROOT / "runs" / run / LINKING
            if not figures.exists():
                write_json(figures, _linking(load(figures.parent / "export", dtype=torch.bfloat16), files))
    before = _linking(_untrained(ROOT / "runs" / f"ablation-{kind}-{BASE}-0"), files)
    rows = [_row(name, kind, options.seeds, before) for name in options.ablations]
    out = ROOT / "bench" / "results" / "ablations.json"
    others = read_json(out) if out.exists() else []
    budget = [rows[0][key] for key in ("data", "epochs", "steps", "layers")]
    alike = [row for row in others if [row[key] for key in ("data", "epochs", "steps", "layers")] == budget]
    rows += [row for row in alike if row["ablation"] not in options.ablations]
    write_json(out, rows)
    print(_table(rows))


def _medmentions(options: argparse.Namespace) -> tuple[Path, tuple[Path, Path], list[str]]:
    """Return encoder, dictionary, queries and the changes to the recipes."""
    build(options.data, options.encoder)
    return options.encoder, linking_files(options.data), FAST


def _sample() -> tuple[Path, tuple[Path, Path], list[str]]:
    """Return the same for the sample data set."""
    built, source = "shards/built/sample", ROOT / "shards/sample"
    rates = ["optimizer.text_learning_rate=1.0e-3", "optimizer.graph_learning_rate=1.0e-3"]
    changes = [f"data.graph={built}/graph", f"data.shards={built}/shards", "precision=fp32", *rates]
    return source / "encoder", (source / "dictionary.txt", source / "queries.tsv"), changes


def _train(name: str, overrides: list[str]) -> None:
    if any(each.startswith("steps=") for each in overrides):
        overrides = [*overrides, "epochs=null"]
    train(RECIPES / f"{name}.yaml", overrides)


def _untrained(run: Path) -> Encoder:
    """Return the encoder before training."""
    recipe = load_recipe(run / "recipe.yaml")
    settings = recipe.text_encoder
    model = load_text_encoder(settings.path, seed=recipe.seed, weights=settings.weights, layer=settings.layer).encoder
    return Encoder(model.bfloat16(), load_tokenizer(settings.path))


def _linking(encoder: Encoder, files: tuple[Path, Path]) -> dict[str, Any]:
    return evaluate_linking(encoder, read_dictionary(files[0]), read_queries(files[1]))


def _row(name: str, kind: str, seeds: int, untrained: dict[str, Any]) -> dict[str, Any]:
    runs, base = ([ROOT / "runs" / f"ablation-{kind}-{each}-{seed}" for seed in range(seeds)] for each in (name, BASE))
    trained, compared = ([read_json(run / LINKING) for run in each] for each in (runs, base))
    retrieval = [read_json(run / "evaluation.json")["retrieval"] for run in runs]
    recipe = yaml.safe_load((runs[0] / "recipe.yaml").read_text())
    row = {
        "ablation": name,
        "data": kind,
        "seeds": seeds,
        "epochs": recipe["epochs"],
        "steps": recipe["steps"],
        "layers": recipe["text_encoder"]["layer"],
        "text_to_graph_r@1": _interval([each["text_to_graph_r@1"] for each in retrieval]),
    }
    for subset in SUBSETS:
        before, *after = (each[subset]["acc@1"]["value"] for each in (untrained, *trained))
        gained = [own - each[subset]["acc@1"]["value"] for own, each in zip(after, compared, strict=True)]
        row |= {
            f"untrained {subset}": before,
            f"acc@1 {subset}": _interval(after),
            f"against {BASE} {subset}": _interval(gained),
        }
    return row


def _interval(values: list[float]) -> dict[str, Any]:
    """Mean and 95 % interval over seeds; no interval for a single seed."""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return {"value": mean, "low": None, "high": None}
    half = STUDENT.get(len(values), 1.96) * statistics.stdev(values) / math.sqrt(len(values))
    return {"value": mean, "low": mean - half, "high": mean + half}


def _table(rows: list[dict[str, Any]]) -> str:
    columns = [
        *(f"{what} {subset}" for what in ("acc@1", f"against {BASE}") for subset in SUBSETS),
        "text_to_graph_r@1",
    ]
    lines = [f"{'ablation':<24}" + "".join(f"{column:>32}" for column in columns)]
    untrained = (f"{100 * rows[0][f'untrained {subset}']:.1f}" for subset in SUBSETS)
    lines.append(f"{'untrained':<24}" + "".join(f"{value:>32}" for value in untrained))
    for row in sorted(rows, key=lambda row: -row[columns[1]]["value"]):
        cells = (_cell(row[column]) for column in columns)
        lines.append(f"{row['ablation']:<24}" + "".join(f"{cell:>32}" for cell in cells))
    return "\n".join(lines)


def _cell(interval: dict[str, Any]) -> str:
    value, low, high = (None if interval[key] is None else 100 * interval[key] for key in ("value", "low", "high"))
    return f"{value:.1f}" if low is None else f"{value:.1f} [{low:.1f}, {high:.1f}]"


if __name__ == "__main__":
    main()
