"""Commands that measure a model."""

import argparse
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from bali_ds.cli.common import emit, interval
from bali_ds.cli.evaluate_graph import add_tasks


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this group's commands to the program."""
    evaluate = commands.add_parser("evaluate", help="measure a model", description="Measure a model.")
    tasks = evaluate.add_subparsers(metavar="TASK", required=True)
    _add_linking(tasks)
    _add_retrieval(tasks)
    _add_questions(tasks)
    add_tasks(tasks)


def _add_linking(tasks: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    linking = tasks.add_parser(
        "linking",
        help="zero-shot entity linking: Acc@1, Acc@5, MRR by subset",
        description="Link mentions to the concepts of a dictionary by the nearest name, without any training. "
        "Intervals are 95 % bootstrap intervals over the mentions.",
    )
    linking.add_argument("--model", type=Path, required=True, metavar="DIR", help="an exported or Hugging Face encoder")
    linking.add_argument(
        "--dictionary", type=Path, required=True, metavar="FILE", help="CUI||name lines, plain or gzip"
    )
    linking.add_argument(
        "--queries",
        required=True,
        metavar="FILE",
        help="TSV with mention and cui columns, .concept, or a corpus as FORMAT:PATH, for example pubtator:FILE",
    )
    linking.add_argument("--in-context", action="store_true", help="read each mention within its text (a corpus)")
    linking.add_argument("--pooling", choices=("mean_tokens", "mean", "cls"), help="default: the model's own")
    linking.add_argument("--against", type=Path, metavar="DIR", help="compare with this model by a paired bootstrap")
    linking.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    linking.add_argument("--device", default="cpu", help="where the model computes (default cpu)")
    linking.add_argument("--json", action="store_true", help="print JSON")
    linking.set_defaults(run=_run_linking)


def _run_linking(options: argparse.Namespace) -> None:
    from bali_ds.evaluation.linking import compare_linking, rank_queries, summarize
    from bali_ds.evaluation.linking_data import read_queries
    from bali_ds.inference.concept_dictionary import read_dictionary
    from bali_ds.inference.encoder import load

    dictionary = read_dictionary(options.dictionary)
    queries = read_queries(options.queries)

    def ranks(path: Path) -> Any:
        encoder = load(path, device=options.device)
        encoder.pooling = options.pooling or encoder.pooling
        return rank_queries(encoder, dictionary, queries, in_context=options.in_context, progress=True)

    own = ranks(options.model)
    result = summarize(own, dictionary, queries, seed=options.seed)
    if options.against:
        differences = compare_linking(ranks(options.against), own, dictionary, queries, options.seed)
        for subset, measures in differences.items():
            result[subset]["difference"] = measures
    emit(result, options.json, lambda: _linking_table(result))


def _linking_table(result: dict[str, Any]) -> str:
    measures = ("acc@1", "acc@5", "acc@20", "mrr")
    lines = [f"{'subset':<20}{'n':>8}" + "".join(f"{measure:>24}" for measure in measures)]
    for subset, values in result.items():
        lines.append(f"{subset:<20}{values['n']:>8,}" + "".join(interval(values[measure]) for measure in measures))
        if "difference" in values:
            changes = (values["difference"][measure] for measure in measures)
            lines.append(f"{'  against the other':<28}" + "".join(interval(change, sign="+") for change in changes))
    return "\n".join(lines)


def _add_retrieval(tasks: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    retrieval = tasks.add_parser(
        "retrieval",
        help="text to graph and back on held-out passages: R@1, R@5, R@10, MRR",
        description="Find the graph view of a concept by its text view among those of all held-out passages, and back.",
    )
    retrieval.add_argument("--model", type=Path, required=True, metavar="DIR", help="a directory that export wrote")
    retrieval.add_argument("--graph", type=Path, required=True, metavar="GRAPH")
    retrieval.add_argument("--shards", type=Path, required=True, metavar="SHARDS")
    retrieval.add_argument("--split", choices=("validation", "train"), default="validation")
    retrieval.add_argument("--passages", type=int, metavar="N", help="take the first N (default: all)")
    retrieval.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    retrieval.add_argument("--device", default="cpu", help="where the model computes (default cpu)")
    retrieval.add_argument("--json", action="store_true", help="print JSON")
    retrieval.set_defaults(run=_run_retrieval)


def _run_retrieval(options: argparse.Namespace) -> None:
    from bali_ds.evaluation.retrieval import evaluate_retrieval
    from bali_ds.graph.knowledge_graph import KnowledgeGraph
    from bali_ds.inference.aligned_model import held_out_views, load_aligned
    from bali_ds.shards.shard_set import ShardSet

    graph, shards = KnowledgeGraph.open(options.graph), ShardSet.open(options.shards)
    aligner, recipe = load_aligned(options.model, options.device, graph)
    views = held_out_views(aligner, recipe, graph, shards, split=options.split, passages=options.passages)
    result = evaluate_retrieval(*views, seed=options.seed)
    emit(result, options.json, lambda: _retrieval_table(result))


def _retrieval_table(result: dict[str, Any]) -> str:
    measures = ("r@1", "r@5", "r@10", "mrr")
    lines = [f"{'direction':<20}{'n':>8}" + "".join(f"{measure:>24}" for measure in measures)]
    for key in ("text_to_graph", "graph_to_text"):
        cells = "".join(interval(result[key][measure]) for measure in measures)
        lines.append(f"{key.replace('_', ' '):<20}{result['n']:>8,}{cells}")
    uniformity = ", ".join(f"{view} {value:.3f}" for view, value in result["uniformity"].items())
    lines.append(f"alignment {result['alignment']:.3f}; uniformity: {uniformity}")
    return "\n".join(lines)


def _add_questions(tasks: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    questions = tasks.add_parser(
        "qa",
        help="fine-tune on questions and score: PubMedQA, BioASQ, MedQA, MedMCQA, BLURB",
        description="Fine-tune the encoder with the Hugging Face Trainer and print accuracy, mean and standard "
        "deviation over rounds. The data is your own copy: pubmedqa github.com/pubmedqa/pubmedqa; bioasq "
        "participants-area.bioasq.org; medqa github.com/jind11/MedQA; medmcqa github.com/medmcqa/medmcqa; blurb "
        "github.com/michiyasunaga/LinkBERT.",
    )
    questions.add_argument(
        "--model", type=Path, required=True, metavar="DIR", help="an exported or Hugging Face encoder"
    )
    questions.add_argument("--task", required=True, choices=("pubmedqa", "bioasq", "medqa", "medmcqa", "blurb"))
    questions.add_argument("--data", type=Path, required=True, metavar="PATH", help="official folder, or one file")
    questions.add_argument(
        "--folds", type=int, default=10, help="rounds of cross-validation over one file (default 10)"
    )
    questions.add_argument("--no-snippets", action="store_true", help="BioASQ questions alone")
    questions.add_argument("--epochs", type=int, default=50)
    questions.add_argument("--learning-rate", type=float, default=1e-5)
    questions.add_argument("--batch", type=int, default=16)
    questions.add_argument("--max-tokens", type=int, default=512)
    questions.add_argument("--seed", type=int, default=42)
    questions.add_argument("--json", action="store_true", help="print JSON")
    questions.set_defaults(run=_run_questions)


def _run_questions(options: argparse.Namespace) -> None:
    from bali_ds.evaluation.question_data import read_splits
    from bali_ds.evaluation.questions import Tuning, evaluate_questions
    from bali_ds.inference.encoder import check_directory

    check_directory(options.model)
    splits = read_splits(options.task, options.data, folds=options.folds, snippets=not options.no_snippets)
    tuning = Tuning(
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        batch=options.batch,
        max_tokens=options.max_tokens,
        seed=options.seed,
    )
    # The Trainer imports DeepSpeed, which speaks on the standard output.
    with redirect_stdout(sys.stderr):
        result = evaluate_questions(options.model, splits, tuning)
    accuracy = result["accuracy"]
    emit(
        result,
        options.json,
        lambda: (
            f"{options.task}: accuracy {100 * accuracy['mean']:.1f} ± {100 * accuracy['sd']:.1f} over "
            f"{result['rounds']} rounds, {result['n']:,} questions; most frequent answer {100 * result['majority']:.1f}"
        ),
    )
