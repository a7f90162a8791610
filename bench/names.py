"""Cost of a step by the setting of `graph_encoder.names`, and without the parts that an objective of weight 0 needs.

python bench/names.py [--recipe FILE] [--passages 16] [--steps 3] [key=value ...]

Runs forward and backward passes on the same batches in one process. Reports medians of CPU seconds and writes
bench/results/names.json.
"""

import argparse
import statistics
import time
from itertools import islice
from pathlib import Path
from typing import Any

from bali_ds.config import load_recipe
from bali_ds.data.loader import Loader
from bali_ds.files import write_json
from bali_ds.model.build_model import build_aligner
from bali_ds.objectives.registry import stream_settings
from bali_ds.planning.run_data import RunData

ROOT = Path(__file__).parents[1]
CASES = {
    "names with gradient": [],
    "names without gradient": ["graph_encoder.names=no_gradient"],
    "names cached": ["graph_encoder.names=cached"],
    "linearized": ["graph_encoder.kind=linearized"],
    "alignment alone": ["objective.masked_language_model.weight=0"],
    "masked language model alone": ["objective.contrastive.weight=0"],
}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description="Measure what names cost.")
    parser.add_argument("--recipe", type=Path, default=ROOT / "launch/recipes/sample.yaml")
    parser.add_argument("--passages", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()
    rows = [{"case": case, **_measured(options, changes)} for case, changes in CASES.items()]
    write_json(ROOT / "bench" / "results" / "names.json", rows)
    whole = rows[0]["seconds"]
    print(f"{'case':<30}{'CPU s a step':>14}{'of the whole':>14}{'table, s':>10}")
    for row in rows:
        print(f"{row['case']:<30}{row['seconds']:>14.3f}{row['seconds'] / whole:>14.0%}{row['table_seconds']:>10.1f}")


def _measured(options: argparse.Namespace, changes: list[str]) -> dict[str, Any]:
    recipe = load_recipe(options.recipe, [*options.overrides, *changes])
    data = RunData.open(recipe)
    aligner = build_aligner(recipe, 2 * data.graph.num_relations, data.shards).train()
    loader = Loader(data.shards, data.graph, stream_settings(recipe), global_batch=options.passages)
    table_seconds = 0.0
    if aligner.table is not None:
        begin = time.process_time()
        aligner.table.keep_fresh(aligner.text)
        table_seconds = time.process_time() - begin
    seconds = []
    for step in islice(loader, options.steps + 1):
        begin = time.process_time()
        loss, _ = aligner(step.micro_batches)
        loss.backward()
        aligner.zero_grad(set_to_none=True)
        seconds.append(time.process_time() - begin)
    return {"passages": options.passages, "seconds": statistics.median(seconds[1:]), "table_seconds": table_seconds}


if __name__ == "__main__":
    main()
