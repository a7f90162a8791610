"""The recipes of launch/recipes/ablations on one budget and the same seeds: what each part is worth.

python bench/ablations.py [--data DIR] [--encoder DIR] [--seeds 3] [--ablations joint dual ...] [key=value ...]
python bench/ablations.py --sample --seeds 1 steps=4

Trains each on two CPU ranks, measures linking on the development mentions of MedMentions (with --sample: on the
queries of the sample data set) and retrieval on held-out passages, and writes a list of rows to
bench/results/ablations.json. A complete run of the same recipe is not made again, an interrupted one goes on; further
key=value change every recipe.
"""

import argparse
import json
import math
import socket
import statistics
from pathlib import Path
from typing import Any

import yaml
from inputs.medmentions import DATA, FAST, ROOT, build, linking, minilm, train

from bali_ds.files import write_json

RECIPES = ROOT / "launch" / "recipes" / "ablations"
# 97.5 % points of Student's t, by the number of seeds
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}


def main() -> None:
    """Train, measure, print the table."""
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    parser = argparse.ArgumentParser(description="Compare the ablations.")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--encoder", type=Path, default=minilm())
    parser.add_argument("--sample", action="store_true", help="on the sample data set, for a look at the bench itself")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ablations", nargs="+", choices=names, default=names)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()
    kind = "sample" if options.sample else "medmentions"
    common = [*(_sample() if options.sample else _medmentions(options)), *options.overrides]
    for seed in range(options.seeds):
        for name in options.ablations:
            _train(name, [*common, f"name=ablation-{kind}-{name}-{seed}", f"seed={29 + seed}"])
    rows = [_row(name, kind, options.seeds) for name in options.ablations]
    write_json(ROOT / "bench" / "results" / "ablations.json", rows)
    print(_table(rows))


def _medmentions(options: argparse.Namespace) -> list[str]:
    build(options.data, options.encoder)
    return [f"text_encoder.path={options.encoder}", linking(options.data), *FAST]


def _sample() -> list[str]:
    built, source = "shards/built/sample", "shards/sample"
    linking = {"dictionary": f"{source}/dictionary.txt", "queries": f"{source}/queries.tsv"}
    return [
        f"data.graph={built}/graph", f"data.shards={built}/shards", f"text_encoder.path={source}/encoder",
        f"evaluation.linking={json.dumps(linking)}", "precision=fp32", "optimiser.text_learning_rate=1.0e-3",
        "optimiser.graph_learning_rate=1.0e-3",
    ]  # fmt: skip


def _train(name: str, overrides: list[str]) -> None:
    if any(each.startswith("steps=") for each in overrides):
        overrides = [*overrides, "epochs=null"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    train(RECIPES / f"{name}.yaml", overrides, port)


def _row(name: str, kind: str, seeds: int) -> dict[str, Any]:
    runs = [ROOT / "runs" / f"ablation-{kind}-{name}-{seed}" for seed in range(seeds)]
    figures = [json.loads((run / "evaluation.json").read_text()) for run in runs]
    lines = [json.loads(line) for run in runs for line in (run / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["samples_per_second"] for line in lines if "samples_per_second" in line]
    trained = [each["linking"]["trained"]["all"]["acc@1"] for each in figures]
    recalls = [each["retrieval"]["text_to_graph_r@1"] for each in figures]
    recipe = yaml.safe_load((runs[0] / "recipe.yaml").read_text())
    return {
        "ablation": name,
        "data": kind,
        "seeds": seeds,
        "epochs": recipe["epochs"],
        "steps": recipe["steps"],
        "untrained": figures[0]["linking"]["untrained"]["all"]["acc@1"]["value"],
        "acc@1": _interval([each["value"] for each in trained], trained[0]),
        "text_to_graph_r@1": _interval(recalls, {"low": None, "high": None}),
        "samples_per_second": statistics.median(speeds),
    }


def _interval(values: list[float], alone: dict[str, Any]) -> dict[str, Any]:
    """Mean and 95 % interval over seeds; for one seed its own interval over mentions, if any."""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return {"value": mean, "low": alone["low"], "high": alone["high"]}
    half = STUDENT.get(len(values), 1.96) * statistics.stdev(values) / math.sqrt(len(values))
    return {"value": mean, "low": mean - half, "high": mean + half}


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'ablation':<24}{'Acc@1':>8}{'95 %':>18}{'untrained':>11}{'text to graph R@1':>19}{'samples/s':>11}"]
    for row in rows:
        accuracy, recall = row["acc@1"], row["text_to_graph_r@1"]["value"]
        spread = f"[{100 * accuracy['low']:.1f}, {100 * accuracy['high']:.1f}]"
        lines.append(
            f"{row['ablation']:<24}{accuracy['value']:>8.1%}{spread:>18}{row['untrained']:>11.1%}{recall:>19.1%}"
            f"{row['samples_per_second']:>11.1f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
