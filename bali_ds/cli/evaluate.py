"""Commands that measure a model."""

import argparse
from pathlib import Path
from typing import Any

from bali_ds.cli.common import emit


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this group's commands to the program."""
    evaluate = commands.add_parser("evaluate", help="measure a model", description="Measure a model.")
    tasks = evaluate.add_subparsers(metavar="TASK", required=True)
    _add_linking(tasks)


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
        "--queries", type=Path, required=True, metavar="FILE", help="TSV with mention and cui columns, or .concept"
    )
    linking.add_argument("--pooling", choices=("mean_tokens", "mean", "cls"), help="default: the model's own")
    linking.add_argument("--against", type=Path, metavar="DIR", help="compare with this model by a paired bootstrap")
    linking.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    linking.add_argument("--device", default="cpu", help="where the model computes (default cpu)")
    linking.add_argument("--json", action="store_true", help="print JSON")
    linking.set_defaults(run=_run_linking)


def _run_linking(options: argparse.Namespace) -> None:
    from bali_ds.evaluation.linking import compare_linking, rank_queries, summarise
    from bali_ds.evaluation.linking_data import read_queries
    from bali_ds.inference.dictionary import read_dictionary
    from bali_ds.inference.encoder import load

    dictionary = read_dictionary(options.dictionary)
    queries = read_queries(options.queries)

    def ranks(path: Path) -> Any:
        encoder = load(path, device=options.device)
        encoder.pooling = options.pooling or encoder.pooling
        return rank_queries(encoder, dictionary, queries, progress=True)

    own = ranks(options.model)
    result = summarise(own, dictionary, queries, seed=options.seed)
    if options.against:
        differences = compare_linking(ranks(options.against), own, dictionary, queries, options.seed)
        for subset, measures in differences.items():
            result[subset]["difference"] = measures
    emit(result, options.json, lambda: _linking_table(result))


def _linking_table(result: dict[str, Any]) -> str:
    measures = ("acc@1", "acc@5", "acc@20", "mrr")
    lines = [f"{'subset':<20}{'n':>8}" + "".join(f"{measure:>24}" for measure in measures)]
    for subset, values in result.items():
        lines.append(f"{subset:<20}{values['n']:>8,}" + "".join(_interval(values[measure]) for measure in measures))
        if "difference" in values:
            changes = (values["difference"][measure] for measure in measures)
            lines.append(f"{'  against the other':<28}" + "".join(_interval(change, sign="+") for change in changes))
    return "\n".join(lines)


def _interval(measure: dict[str, float], sign: str = "") -> str:
    value, low, high = (100 * measure[key] for key in ("value", "low", "high"))
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]".rjust(24)
