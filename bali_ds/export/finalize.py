"""The steps after training: export, evaluation before and after training, and the report."""

import os
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

import bali_ds
from bali_ds.checkpoint.marker import MARKER, checkpoint_step, complete_checkpoints, step_name
from bali_ds.config import LinkingConfig, Recipe, dump_recipe, recorded_recipe
from bali_ds.config.reading import COMPLETE
from bali_ds.corpus.corpus_files import corpus_files
from bali_ds.corpus.readers import READERS
from bali_ds.data.mixture import open_mixture
from bali_ds.errors import InputError
from bali_ds.evaluation.embedding_map import describe_embedding
from bali_ds.evaluation.evaluation_parts import EvaluationParts
from bali_ds.evaluation.linking import compare_linking, rank_queries, summarize
from bali_ds.evaluation.linking_data import read_queries
from bali_ds.evaluation.report import write_report
from bali_ds.evaluation.run_results import read_evaluation, read_metrics
from bali_ds.export.export_run import export_run, refresh_card
from bali_ds.files import read_json, sha256_file, write_json
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.inference.concept_dictionary import read_dictionary
from bali_ds.inference.encoder import Encoder, available_device, load
from bali_ds.model.pretrained import load_tokenizer
from bali_ds.model.text_encoder import load_text_encoder
from bali_ds.planning.batch_plan import plan_batches
from bali_ds.terminal import print_progress, printable_values
from bali_ds.training.run_lock import RunLock


def is_finalized(recipe: Recipe) -> bool:
    """Return whether the run directory holds a trained, exported and evaluated run of exactly this recipe."""
    try:
        content = read_json(recipe.directory / COMPLETE)
    except InputError:
        return False
    return isinstance(content, dict) and content.get("recipe") == dump_recipe(recipe)


def finalize(recipe: Recipe, step: int) -> None:
    """Export a trained run, evaluate it, write the report and mark the run as complete.

    Args:
        recipe: recipe of the run.
        step: the last training step; only its checkpoint is exported.

    Raises:
        InputError: the checkpoint or an evaluation file cannot be used, or another process uses the run directory.
    """
    run = recipe.directory
    with RunLock(run):
        print_progress("exporting fp16 weights, each tensor compared with the checkpoint")
        export_run(run, run / "export", step=step)
        parts = EvaluationParts(run, _evaluated(recipe, step))
        parts.figures["retrieval"] = _last_validation(run)
        # the other ranks have exited, so this process may use all cores
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        encoders = cache(partial(_encoders, recipe))
        if linking := recipe.evaluation.linking:
            files = {name: _content(path) for name, path in linking}
            parts.add("linking", files, lambda: _linking(encoders(), linking))
        graph = KnowledgeGraph.open(recipe.data.graph)
        parts.add("embedding", {"graph": graph.fingerprint}, lambda: _embedding(encoders(), graph, recipe.seed))
        parts.finish()
        refresh_card(run, run / "export")
        print_progress("writing the report")
        write_report(run)
        # what the run itself recorded: here paths and changes of the command line may differ
        write_json(run / COMPLETE, {"recipe": dump_recipe(recorded_recipe(run))})


def trained_step(recipe: Recipe) -> int:
    """Return the last step of a run, whose checkpoint is there.

    Raises:
        InputError: the run is not trained to its end, or its shards cannot be read.
    """
    passages = len(open_mixture(recipe.data.shards).split("train"))
    steps = plan_batches(recipe, 1, passages).steps
    newest = next(map(checkpoint_step, complete_checkpoints(recipe.directory / "checkpoints")), 0)
    if newest < steps:
        raise InputError(
            f"{recipe.directory}: is at step {newest:,} of {steps:,}; train it to the end first: "
            f"bali-ds train {recipe.directory / 'recipe.yaml'}"
        )
    return steps


def results_table(recipe: Recipe) -> str:
    """Return the results of a finalized run as text."""
    run = recipe.directory
    figures = printable_values(read_evaluation(run))
    linking = figures.get("linking") or {}
    lines = _linking_lines(linking) if linking.get("difference") else []
    if retrieval := figures.get("retrieval"):
        text_to_graph, graph_to_text = (retrieval[f"{each}_r@1"] for each in ("text_to_graph", "graph_to_text"))
        lines.append(
            f"R@1 on held-out passages: text to graph {text_to_graph:.1%}, graph to text {graph_to_text:.1%}\n"
        )
    return "\n".join([*lines, f"model   {run / 'export'}", f"report  {run / 'report.html'}"])


def _encoders(recipe: Recipe) -> dict[str, Encoder]:
    """Load the encoder before and after training, both in float32, so that they differ by training alone."""
    device = available_device("auto")
    settings = recipe.text_encoder
    untrained = load_text_encoder(
        settings.path,
        seed=recipe.seed,
        weights=settings.weights,
        layer=settings.layer,
        bidirectional=settings.bidirectional,
    )
    tokenizer = load_tokenizer(settings.path)
    trained = load(recipe.directory / "export", device=device, dtype=torch.float32)
    before = Encoder(untrained.encoder.float().to(device), tokenizer, trained.pooling, trained.query_prompt)
    return {"untrained": before, "trained": trained}


def _linking(encoders: dict[str, Encoder], data: LinkingConfig) -> dict[str, Any]:
    dictionary, queries = read_dictionary(data.dictionary), read_queries(data.queries)
    ranks = []
    for name, encoder in encoders.items():
        print_progress(f"linking {len(queries.mentions):,} mentions to {len(dictionary.names):,} names, {name} encoder")
        ranks.append(rank_queries(encoder, dictionary, queries, progress=True))
    before, after = ranks
    print_progress("computing the bootstrap intervals")
    return {
        "untrained": summarize(before, dictionary, queries),
        "trained": summarize(after, dictionary, queries),
        "difference": compare_linking(before, after, dictionary, queries),
    }


def _embedding(encoders: dict[str, Encoder], graph: KnowledgeGraph, seed: int) -> dict[str, Any]:
    print_progress("drawing the map of names")
    return describe_embedding(encoders, graph, seed)


def _evaluated(recipe: Recipe, step: int) -> dict[str, Any]:
    """Return what tells apart the encoders that are compared: the hash of the checkpoint, and the untrained encoder."""
    return {
        "bali-ds": bali_ds.__version__,
        "checkpoint": sha256_file(recipe.directory / "checkpoints" / step_name(step) / MARKER),
        "seed": recipe.seed,
        "text_encoder": recipe.text_encoder.model_dump(mode="json"),
    }


def _content(location: Path) -> list[str]:
    """Return the hashes of the files of a dictionary or of queries: a file, a folder, or a corpus as FORMAT:PATH."""
    form, colon, _ = str(location).partition(":")
    if colon and form in READERS:
        files = corpus_files(str(location))[1]
    elif location.is_dir():
        files = sorted(file for file in location.rglob("*") if file.is_file())
    else:
        files = [location]
    return [sha256_file(file) for file in files]


def _last_validation(run: Path) -> dict[str, float]:
    """Return the metrics of the run's last validation; empty without held-out passages."""
    metrics: dict[str, float] = {}
    for row in read_metrics(run / "metrics.jsonl"):
        metrics |= {key.removeprefix("validation/"): row[key] for key in row if key.startswith("validation/")}
    return metrics


def _linking_lines(linking: dict[str, Any]) -> list[str]:
    lines = [f"{'linking, Acc@1':<22}{'mentions':>9}{'untrained':>12}{'trained':>10}{'difference, 95 %':>24}"]
    for subset, trained in linking["trained"].items():
        before, after = linking["untrained"][subset]["acc@1"]["value"], trained["acc@1"]["value"]
        change = linking["difference"][subset]["acc@1"]
        spread = f"{100 * change['value']:+.1f} [{100 * change['low']:+.1f}, {100 * change['high']:+.1f}]"
        lines.append(f"{subset:<22}{trained['n']:>9,}{before:>12.1%}{after:>10.1%}{spread:>24}")
    return [*lines, ""]
