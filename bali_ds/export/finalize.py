"""What follows training: export, evaluation before and after, the report."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from bali_ds.config import LinkingConfig, Recipe, dump_recipe
from bali_ds.errors import InputError
from bali_ds.evaluation.embedding_map import describe_embedding
from bali_ds.evaluation.linking import compare_linking, rank_queries, summarize
from bali_ds.evaluation.linking_data import read_queries
from bali_ds.evaluation.report import write_report
from bali_ds.export.export_run import export_run, refresh_card
from bali_ds.files import read_json, write_json
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.inference.concept_dictionary import read_dictionary
from bali_ds.inference.encoder import Encoder, load
from bali_ds.model.pretrained import load_tokenizer
from bali_ds.model.text_encoder import load_text_encoder
from bali_ds.training.run_directory import COMPLETE
from bali_ds.training.run_lock import RunLock


def concluded(recipe: Recipe) -> bool:
    """Whether a run of this very recipe is trained, exported and evaluated."""
    try:
        return read_json(recipe.directory / COMPLETE)["recipe"] == dump_recipe(recipe)
    except (InputError, KeyError):
        return False


def conclude(recipe: Recipe, step: int) -> None:
    """Export a trained run, evaluate it, write the report and mark the run as complete.

    Args:
        recipe: the run.
        step: the one that training ended with. No other checkpoint is exported in place of its own.

    Raises:
        InputError: the checkpoint or an evaluation file cannot be used, or another process uses the run's directory.
    """
    run = recipe.directory
    with RunLock(run):
        print("exporting fp16 weights", flush=True)
        export_run(run, run / "export", step=step)
        figures: dict[str, Any] = {"retrieval": _retrieval(run)}
        # The other ranks are done: the cores of all are free for this one.
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        encoders = _encoders(recipe)
        if recipe.evaluation.linking:
            print("evaluating linking, untrained and trained", flush=True)
            figures["linking"] = _linking(encoders, recipe.evaluation.linking)
        figures["embedding"] = describe_embedding(encoders, KnowledgeGraph.open(recipe.data.graph), recipe.seed)
        write_json(run / "evaluation.json", figures)
        refresh_card(run, run / "export")
        write_report(run)
        write_json(run / COMPLETE, {"recipe": dump_recipe(recipe)})


def results(recipe: Recipe) -> str:
    """Return the table of a complete run."""
    return _table(recipe.directory, read_json(recipe.directory / "evaluation.json"))


def _encoders(recipe: Recipe) -> dict[str, Encoder]:
    """Return both in one precision, so that they differ by training alone."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = recipe.text_encoder
    untrained = load_text_encoder(settings.path, seed=recipe.seed, layer=settings.layer).encoder.float().to(device)
    tokenizer = load_tokenizer(settings.path)
    trained = load(recipe.directory / "export", device=device, dtype=torch.float32)
    return {"untrained": Encoder(untrained, tokenizer), "trained": trained}


def _linking(encoders: dict[str, Encoder], data: LinkingConfig) -> dict[str, Any]:
    dictionary, queries = read_dictionary(data.dictionary), read_queries(data.queries)
    before, after = (rank_queries(encoder, dictionary, queries) for encoder in encoders.values())
    return {
        "untrained": summarize(before, dictionary, queries),
        "trained": summarize(after, dictionary, queries),
        "difference": compare_linking(before, after, dictionary, queries),
    }


def _retrieval(run: Path) -> dict[str, float]:
    """Return the measures of a run's last validation, none where nothing was held out."""
    measures: dict[str, float] = {}
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        for key, value in json.loads(line).items():
            if key.startswith("validation/"):
                measures[key.removeprefix("validation/")] = value
    return measures


def _table(run: Path, figures: dict[str, Any]) -> str:
    lines = []
    if linking := figures.get("linking"):
        lines.append(f"{'linking, Acc@1':<22}{'mentions':>9}{'untrained':>12}{'trained':>10}{'difference, 95 %':>24}")
        for subset, trained in linking["trained"].items():
            before, after = linking["untrained"][subset]["acc@1"]["value"], trained["acc@1"]["value"]
            change = linking["difference"][subset]["acc@1"]
            spread = f"{100 * change['value']:+.1f} [{100 * change['low']:+.1f}, {100 * change['high']:+.1f}]"
            lines.append(f"{subset:<22}{trained['n']:>9,}{before:>12.1%}{after:>10.1%}{spread:>24}")
        lines.append("")
    if retrieval := figures.get("retrieval"):
        recalls = (
            f"text to graph {retrieval['text_to_graph_r@1']:.1%}, graph to text {retrieval['graph_to_text_r@1']:.1%}"
        )
        lines.append(f"R@1 on held-out passages: {recalls}\n")
    lines += [f"model   {run / 'export'}", f"report  {run / 'report.html'}"]
    return "\n".join(lines)
