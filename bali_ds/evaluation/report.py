"""Report of a run: one self-contained HTML page with training curves, evaluation results, recipe and fingerprints."""

import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from bali_ds.config import ObjectiveConfig
from bali_ds.errors import InputError
from bali_ds.evaluation.charts import Points, forest_chart, line_chart, number, scatter_chart
from bali_ds.evaluation.generated_text import generated_table
from bali_ds.evaluation.page import page
from bali_ds.evaluation.run_results import read_evaluation, read_generated, read_metrics
from bali_ds.files import published_file, read_text
from bali_ds.inference.exported_directory import ExportDescription, read_description
from bali_ds.parsing import parse_yaml
from bali_ds.progress_bar import duration

SUBSETS = {
    "all": "all mentions",
    "unique": "unique pairs",
    "unique_not_exact": "no exact name",
    "unique_unseen_cui": "concept unseen in training",
    "unique_unseen_pair": "pair unseen in training",
}
MEASURES = {"acc@1": "Acc@1", "acc@5": "Acc@5", "mrr": "MRR"}
DUAL = {"text_to_graph": "facts from text", "graph_to_text": "text from graph"}
INFORMATION = {
    "information_text_to_graph": "facts given the text (decoder estimate)",
    "information_graph_to_text": "text given the graph (decoder estimate)",
    "information_contrastive": "between the two views (InfoNCE, a lower bound)",
    "information_cap": "largest value of InfoNCE, log N",
}


MEASURED = (
    ("R@1 in training batches", "fraction", ("batch_r@1",)),
    ("Gradient norm before clipping", "norm", ("gradient_norm", "gradient_norm_text", "gradient_norm_graph")),
    ("Temperature", "temperature", ("temperature",)),
    ("Time in collectives", "fraction of time", ("communication",)),
    ("Utilization of the device", "MFU", ("mfu",)),
    ("Peak memory of rank 0, GiB", "GiB", ("memory_gib",)),
)
"""Charts of metrics that a run may have: title, unit and keys of metrics.jsonl."""
_STEP_LINE = re.compile(r"  step [\d,]+/\S+  epoch ")
_MOST_EVENTS = 400
_LARGEST_LOG = 1 << 28


def write_report(run: Path) -> Path:
    """Write `report.html` into a run directory, from those of its files that exist.

    Returns:
        the path of the page.

    Raises:
        InputError: the directory is not a run directory, or one of these files is damaged.
    """
    run = Path(run)
    if not (run / "recipe.yaml").is_file():
        raise InputError(f"{run}: is not a run directory: recipe.yaml does not exist; pass runs/NAME")
    recipe = read_text(run / "recipe.yaml")
    values = parse_yaml(recipe, str(run / "recipe.yaml"))
    if not isinstance(values, dict):
        raise InputError(f"{run / 'recipe.yaml'}: is not a mapping of recipe keys to values")
    metrics, evaluation = read_metrics(run / "metrics.jsonl"), read_evaluation(run)
    generated, description = read_generated(run), read_description(run / "export")
    sections = [*_training(metrics), *_evaluation(evaluation), *_generated(generated), *_events(run)]
    sections += _origin(recipe, description)
    name = str(values.get("name", run.name))
    out = run / "report.html"
    with published_file(out, "w") as stream:
        stream.write(page(name, _summary(metrics, evaluation), sections))
    return out


def _summary(metrics: list[dict[str, float]], evaluation: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the (label, value) cards at the top of the page."""
    cards = []
    steps = [row for row in metrics if "loss" in row]
    if steps:
        last = steps[-1]
        cards = [
            ("steps", number(last["step"])),
            ("epochs", number(round(last["epoch"], 2))),
            ("last loss", number(last["loss"])),
            ("samples a second", number(_median([row["samples_per_second"] for row in steps]))),
            ("time", duration(last["seconds"])),
        ]
    linking = evaluation.get("linking") or {}
    for model in ("untrained", "trained"):
        subset = (linking.get(model) or {}).get("unique")
        if subset:
            cards.append((f"Acc@1 {model}", f"{100 * subset['acc@1']['value']:.1f} %"))
    return cards


def _training(metrics: list[dict[str, float]]) -> Iterator[tuple[str, str]]:
    if not metrics:
        return
    losses = {name.replace("_", " "): series_of(metrics, name) for name in ObjectiveConfig.model_fields}
    yield "Loss", line_chart({"total": series_of(metrics, "loss"), **losses}, x_label="step", y_label="loss")
    for title, unit, names in (
        ("Decoder", "loss, nats a token", DUAL),
        ("Mutual information", "nats a pair", INFORMATION),
    ):
        series = {label: series_of(metrics, name) for name, label in names.items()}
        if any(series.values()):
            yield title, line_chart(series, x_label="step", y_label=unit) + f'<p class="quiet">{unit}</p>'
    recall = {
        f"{direction} {label}": series_of(metrics, f"validation/{key}_{measure}")
        for key, direction in (("text_to_graph", "text to graph"), ("graph_to_text", "graph to text"))
        for measure, label in (("r@1", "R@1"), ("mrr", "MRR"))
    }
    if any(recall.values()):
        yield (
            "Retrieval on held-out passages",
            line_chart(recall, x_label="step", y_label="retrieval", from_zero=True),
        )
    for title, label, keys in MEASURED:
        series = {key.removeprefix("gradient_norm_").replace("_", " "): series_of(metrics, key) for key in keys}
        if any(series.values()):
            yield title, line_chart(series, x_label="step", y_label=label)
    speed = {"samples a second": series_of(metrics, "samples_per_second")}
    yield "Throughput", line_chart(speed, x_label="step", y_label="samples a second", from_zero=True)
    waits = {"fraction of time": series_of(metrics, "data_wait")}
    yield "Waiting for data", line_chart(waits, x_label="step", y_label="fraction of time", from_zero=True)
    rates = {"learning rate": series_of(metrics, "learning_rate")}
    yield "Learning rate of the text encoder", line_chart(rates, x_label="step", y_label="learning rate")


def _events(run: Path) -> Iterator[tuple[str, str]]:
    """Yield the lines of train.log except those of steps: host, versions, restarts, saves, skipped batches."""
    path = run / "train.log"
    if path.is_file():
        lines = [line for line in read_text(path, _LARGEST_LOG).splitlines() if not _STEP_LINE.search(line)]
        more = f"… {len(lines) - _MOST_EVENTS:,} earlier lines\n" if len(lines) > _MOST_EVENTS else ""
        yield "What happened", f"<pre>{more}{escape(chr(10).join(lines[-_MOST_EVENTS:]))}</pre>"


def series_of(metrics: list[dict[str, float]], key: str) -> Points:
    """Return (step, value) of each row of the metrics that has a key."""
    return [(row["step"], row[key]) for row in metrics if key in row]


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _evaluation(evaluation: dict[str, Any]) -> Iterator[tuple[str, str]]:
    linking = evaluation.get("linking") or {}
    models = {model: linking[model] for model in ("untrained", "trained") if linking.get(model)}
    if models:
        groups = _equal_subsets(models)
        rows = {
            title: {model: values[subset]["acc@1"] for model, values in models.items()}
            for subset, title in groups.items()
        }
        note = (
            "95 % bootstrap intervals over the mentions, or over the documents of a corpus with mentions. "
            "Concepts are ranked by their most similar name."
        )
        chart = forest_chart(rows, label="Acc@1 in percent")
        yield (
            "Zero-shot linking",
            chart + linking_table(models, linking.get("difference", {}), groups) + f'<p class="quiet">{note}</p>',
        )
    if embedding := evaluation.get("embedding"):
        yield from _embedding(embedding)


def _embedding(embedding: dict[str, Any]) -> Iterator[tuple[str, str]]:
    models = [model for model in ("untrained", "trained") if model in embedding["maps"]]  # files sort their keys
    for model in models:
        points = embedding["maps"][model]
        label = f"t-SNE of {len(points):,} concept names, by semantic group"
        yield f"Concept names, {model}", scatter_chart(points, embedding["groups"], embedding["names"], label=label)
    head = "".join(f"<th>{escape(model)}</th>" for model in models)
    rows = "".join(
        f"<tr><th>{escape(example['name'])}</th>"
        + "".join(f"<td>{_neighbors(example[model])}</td>" for model in models)
        + "</tr>"
        for example in embedding["neighbors"]
    )
    table = f"<table><thead><tr><th>concept</th>{head}</tr></thead>{rows}</table>"
    yield (
        "Nearest names",
        f'<div class="wide words">{table}</div><p class="quiet">Names with their cosine, most similar first.</p>',
    )


def _neighbors(names: list[dict[str, Any]]) -> str:
    return "<br>".join(f'{escape(each["name"])} <span class="quiet">{each["cosine"]:.2f}</span>' for each in names)


def _generated(samples: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    if samples:
        note = "Held-out passages, greedy decoding, at most as long as the longest true sequence."
        yield "Generated by the decoder", f'{generated_table(samples)}<p class="quiet">{note}</p>'


def _equal_subsets(models: dict[str, Any]) -> dict[str, str]:
    """Return the first of the subsets that have equal values with every model, and the titles of all of them."""
    groups: dict[str, list[str]] = {}
    first: dict[str, str] = {}
    for subset in next(iter(models.values())):
        key = repr([values[subset] for values in models.values()])
        groups.setdefault(first.setdefault(key, subset), []).append(SUBSETS.get(subset, subset))
    return {subset: ", ".join(titles) for subset, titles in groups.items()}


def linking_table(models: dict[str, Any], differences: dict[str, Any], groups: dict[str, str]) -> str:
    """Return an HTML table of linking results.

    Args:
        models: {model: {subset: measures}}.
        differences: {subset: measures} of the last model against the first; may be empty.
        groups: subsets to show, with their titles.
    """
    head = "".join(f'<th class="figure">{label}</th>' for label in MEASURES.values())
    body = []
    for subset, titles in groups.items():
        count = next(iter(models.values()))[subset]["n"]
        title = escape(titles)
        body.append(
            f'<tr class="group"><th colspan="4">{title} <span class="quiet">{count:,} mentions</span></th></tr>'
        )
        for model, values in models.items():
            cells = "".join(f'<td class="figure">{_figure(values[subset][measure])}</td>' for measure in MEASURES)
            body.append(f"<tr><td>{escape(model)}</td>{cells}</tr>")
        if subset in differences:
            cells = "".join(
                f'<td class="figure">{_figure(differences[subset][measure], "+")}</td>' for measure in MEASURES
            )
            body.append(f'<tr class="difference"><td>difference</td>{cells}</tr>')
    return f'<div class="wide"><table><thead><tr><th>model</th>{head}</tr></thead>{"".join(body)}</table></div>'


def _figure(measure: dict[str, float], sign: str = "") -> str:
    value, low, high = (100 * measure[key] for key in ("value", "low", "high"))
    return f'{value:{sign}.1f} <span class="interval">{low:{sign}.1f} to {high:{sign}.1f}</span>'


def _origin(recipe: str, description: ExportDescription) -> Iterator[tuple[str, str]]:
    facts: dict[str, Any] = {f"fingerprint of the {name}": value for name, value in description.fingerprints.items()}
    facts |= {name: getattr(description, name) for name in ("step", "dtype", "pooling")} if facts else {}
    if facts:
        rows = "".join(
            f"<tr><th>{escape(name)}</th><td><code>{escape(str(value))}</code></td></tr>"
            for name, value in facts.items()
            if value is not None
        )
        yield "Data and export", f'<div class="wide"><table class="facts">{rows}</table></div>'
    yield "Recipe", f"<pre>{escape(recipe)}</pre>"
