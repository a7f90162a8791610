"""Comparison of runs on one HTML page: curves, linking, and the keys of the recipe in which they differ."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from bali_ds.errors import InputError
from bali_ds.evaluation.charts import forest_chart, line_chart
from bali_ds.evaluation.page import page
from bali_ds.evaluation.report import SUBSETS, linking_table, series_of
from bali_ds.evaluation.run_results import read_evaluation, read_metrics
from bali_ds.files import published_file, read_yaml
from bali_ds.parsing import flattened

COMPARED = {
    "Loss": "loss",
    "Contrastive loss": "contrastive",
    "R@1 on held-out passages, text to graph": "validation/text_to_graph_r@1",
    "Throughput, samples a second": "samples_per_second",
}
"""Charts of a comparison: title, and key of metrics.jsonl."""


def write_comparison(runs: Sequence[Path], out: Path) -> Path:
    """Write a page that compares runs: loss, held-out retrieval and linking of each, and the keys in which they differ.

    Returns:
        `out`.

    Raises:
        InputError: as `write_report`.
    """
    names, metrics, evaluations, recipes = [], {}, {}, {}
    for run in runs:
        if not (run / "recipe.yaml").is_file():
            raise InputError(f"{run}: is not a run directory: recipe.yaml does not exist; pass runs/NAME")
        name = run.resolve().name if run.resolve().name not in names else str(run)
        names.append(name)
        metrics[name], evaluations[name] = read_metrics(run / "metrics.jsonl"), read_evaluation(run)
        recipe = read_yaml(run / "recipe.yaml")
        recipes[name] = {key: str(value) for key, value in flattened(recipe)}
    sections = []
    for title, key in COMPARED.items():
        series = {name: series_of(rows, key) for name, rows in metrics.items()}
        if any(series.values()):
            sections.append((title, line_chart(series, x_label="step", y_label=title)))
    trained = {name: linking["trained"] for name, each in evaluations.items() if (linking := each.get("linking"))}
    common = [subset for subset in SUBSETS if trained and all(subset in values for values in trained.values())]
    if common:
        models = {name: {subset: values[subset] for subset in common} for name, values in trained.items()}
        rows = {SUBSETS[subset]: {name: models[name][subset]["acc@1"] for name in models} for subset in common}
        table = linking_table(models, {}, {subset: SUBSETS[subset] for subset in common})
        sections.append(("Zero-shot linking", forest_chart(rows, label="Acc@1 in percent") + table))
    keys = sorted({key for each in recipes.values() for key in each})
    differing = [key for key in keys if len({recipes[name].get(key) for name in names}) > 1]
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(
        f"<tr><th><code>{escape(key)}</code></th>"
        + "".join(f"<td><code>{escape(recipes[name].get(key, ''))}</code></td>" for name in names)
        + "</tr>"
        for key in differing
    )
    sections.append(
        ("Recipe", f'<div class="wide"><table><thead><tr><th>key</th>{head}</tr></thead>{body}</table></div>')
    )
    with published_file(out, "w") as stream:
        stream.write(page(" and ".join(names), [], sections))
    return out
