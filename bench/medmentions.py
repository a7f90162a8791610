"""The real run: MedMentions and a graph of open ontologies with UMLS identifiers, both objectives and each alone.

python bench/medmentions.py [--data DIR] [--encoder DIR] [--variants joint alignment ...]

Builds graph and shards, trains each variant on two CPU ranks with the same seed and measures linking on the
development mentions before and after. Writes bench/results/medmentions.json and keeps the rows of other variants. An
interrupted call resumes. Variants of 1.5 epochs have the same budget and take ten to thirty minutes on two idle
cores, `joint_long` twice that.
"""

import argparse
import json
from pathlib import Path

from inputs.medmentions import DATA, FAST, ROOT, build, linking, minilm, train

from bali_ds.files import read_json, write_json

JOINT = ROOT / "launch/recipes/ablations/joint.yaml"
VARIANTS: dict[str, tuple[float, list[str]]] = {  # epochs, changes to JOINT
    "joint": (1.5, FAST),
    "alignment": (1.5, [*FAST, "objective.masked_language_model.weight=0"]),
    "masked_language_model": (
        1.5,
        [*FAST, "objective.contrastive.weight=0", "objective.masked_language_model.weight=1"],
    ),
    "joint_synonyms": (1.5, [*FAST, "objective.synonym_alignment.weight=1"]),
    "named_mentions": (
        1.5,
        [*FAST, "objective.synonym_alignment.weight=1", "objective.synonym_alignment.pairs=mentions"],
    ),
    "joint_long": (3, FAST),
    "low_rates": (2, ["objective.masked_language_model.weight=1"]),
}


def main() -> None:
    """Build, train, evaluate, print the table."""
    parser = argparse.ArgumentParser(description="Train on MedMentions and measure linking before and after.")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--encoder", type=Path, default=minilm())
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args()
    build(options.data, options.encoder)
    for variant in options.variants:
        _train(variant, options)
    out = ROOT / "bench" / "results" / "medmentions.json"
    results = read_json(out) if out.exists() else {}
    results |= {variant: _figures(ROOT / "runs" / f"medmentions-{variant}") for variant in options.variants}
    write_json(out, results)
    print(_table(results))


def _train(variant: str, options: argparse.Namespace) -> None:
    epochs, changes = VARIANTS[variant]
    overrides = [
        f"name=medmentions-{variant}",
        f"text_encoder.path={options.encoder}",
        f"epochs={epochs}",
        linking(options.data),
        "validation.every=100",
        "checkpoints.every=100",
        *changes,
    ]
    train(JOINT, overrides)


def _figures(run: Path) -> dict[str, object]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    validation = [line for line in lines if "validation/text_to_graph_r@1" in line]
    return {
        "linking": json.loads((run / "evaluation.json").read_text())["linking"],
        "steps": steps[-1]["step"],
        "passages": steps[-1]["samples"],
        "samples_per_second": sorted(line["samples_per_second"] for line in steps)[len(steps) // 2],
        "validation": {key: value for key, value in validation[-1].items() if key.startswith("validation/")},
    }


def _table(results: dict[str, dict]) -> str:
    lines = [f"{'Acc@1':<24}{'untrained':>10}" + "".join(f"{variant:>24}" for variant in results)]
    first = next(iter(results.values()))
    for subset, untrained in first["linking"]["untrained"].items():
        values = [result["linking"]["trained"][subset]["acc@1"] for result in results.values()]
        cells = [f"{100 * v['value']:.1f} [{100 * v['low']:.1f}, {100 * v['high']:.1f}]" for v in values]
        lines.append(f"{subset:<24}{untrained['acc@1']['value']:>10.1%}" + "".join(f"{cell:>24}" for cell in cells))
    recalls = [result["validation"]["validation/text_to_graph_r@1"] for result in results.values()]
    lines.append(f"{'text to graph R@1':<34}" + "".join(f"{recall:>24.1%}" for recall in recalls))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
