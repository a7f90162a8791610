"""Commands for run directories: `export`, `finalize`, `report` and `replay`."""

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from bali_ds.cli.common import add_json, add_overwrite, emit, only_with, results_alone_on_stdout, share
from bali_ds.errors import InputError

START_SHARE = 0.25  # docs/results.md compares it with none


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this group's commands to the program."""
    _add_export(commands)
    _add_finalize(commands)
    _add_report(commands)
    _add_replay(commands)


def _add_export(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    export = commands.add_parser(
        "export",
        help="export the trained encoder of a run as a Hugging Face directory",
        description="Consolidate a checkpoint of a run, of any ZeRO stage and world size, into a Hugging Face "
        "directory and compare every tensor with the checkpoint.",
    )
    export.add_argument("path", type=Path, metavar="RUN", help="run directory, runs/NAME")
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory to write")
    add_overwrite(export)
    export.add_argument(
        "--dtype", choices=("float16", "bfloat16", "float32"), default="float16",
        help="dtype of the weights (default: %(default)s)",
    )  # fmt: skip
    export.add_argument("--step", type=int, metavar="N", help="step of the checkpoint (default: the newest)")
    kind = export.add_mutually_exclusive_group()
    kind.add_argument(
        "--adapter", action="store_true",
        help="of a run with text_encoder.lora, write the LoRA weights alone, as an adapter of peft",
    )  # fmt: skip
    kind.add_argument(
        "--average-with", metavar="START",
        help="average the weights of the text encoder with those of this encoder, which training started from",
    )  # fmt: skip
    export.add_argument(
        "--start-share", type=share, metavar="S",
        help=f"share of START in the average (default: {START_SHARE})",
    )  # fmt: skip
    export.add_argument("--onnx", action="store_true", help="also write onnx/model.onnx, verified against torch")
    export.add_argument(
        "--push", metavar="REPO", help="upload the directory to this repository of the Hugging Face Hub"
    )
    add_json(export)
    export.set_defaults(run=_run_export)


def _run_export(options: argparse.Namespace) -> None:
    if options.adapter and options.onnx:
        raise InputError("--onnx: not with --adapter, which holds no encoder")
    only_with(options, "average_with", "start_share")
    share_of_start = START_SHARE if options.start_share is None else options.start_share
    with results_alone_on_stdout():
        from bali_ds.export.export_run import export_run, push
        from bali_ds.training.run_lock import RunLock

        within = options.out.resolve().is_relative_to(options.path.resolve())
        with RunLock(options.path) if within else nullcontext():
            report = export_run(
                options.path,
                options.out,
                options.dtype,
                step=options.step,
                onnx=options.onnx,
                start=options.average_with and (options.average_with, share_of_start),
                adapter=options.adapter,
                overwrite=options.overwrite,
            )
        if options.push:
            report["url"] = push(options.out, options.push)
    emit(
        report,
        options.json,
        lambda _: (
            f"{report['out']}: step {report['step']}, {report['parameters'] / 1e6:.1f} M parameters "
            f"as {report['dtype']}, {report['bytes'] / 1e6:.1f} MB; "
            f"all {report['tensors']} tensors match the checkpoint"
            + (f"; uploaded to {report['url']}" if options.push else "")
        ),
    )


def _add_finalize(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    finalize = commands.add_parser(
        "finalize",
        help="export, evaluate and report a run whose training has ended",
        description="Do what training with evaluation.when=after does after its last step: export the encoder, "
        "evaluate it and write the report. One GPU or CPU suffices.",
    )
    finalize.add_argument("path", type=Path, metavar="RUN", help="run directory, runs/NAME")
    finalize.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="changes of the run's recipe, such as where its data is now"
    )
    finalize.set_defaults(run=_run_finalize)


def _run_finalize(options: argparse.Namespace) -> None:
    with results_alone_on_stdout():
        from bali_ds.config import load_recipe
        from bali_ds.config.reading import RECORD
        from bali_ds.export.finalize import finalize, results_table, trained_step

        run = options.path.resolve()
        recipe = load_recipe(run / RECORD, options.overrides)
        recipe = recipe.model_copy(update={"runs": run.parent, "name": run.name})
        finalize(recipe, trained_step(recipe))
    print(results_table(recipe))


def _add_report(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    report = commands.add_parser(
        "report",
        help="write the HTML report of a run",
        description="Write report.html into the run directory: training curves, evaluation results and recipe on one "
        "self-contained page.",
    )
    report.add_argument(
        "path", type=Path, nargs="+", metavar="RUN", help="run directory, runs/NAME; several are compared on one page"
    )
    report.add_argument(
        "--out", type=Path, metavar="FILE", help="page of a comparison (default: comparison.html in this folder)"
    )
    report.set_defaults(run=_run_report)


def _run_report(options: argparse.Namespace) -> None:
    from bali_ds.evaluation.comparison import write_comparison
    from bali_ds.evaluation.report import write_report

    if len(options.path) > 1:
        print(write_comparison(options.path, options.out or Path("comparison.html")))
    elif options.out:
        raise InputError("report: --out names the page of a comparison; the report of one run is in its directory")
    else:
        print(write_report(options.path[0]))


def _add_replay(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    replay = commands.add_parser(
        "replay",
        help="recompute a failed step and find the first module with non-finite output",
        description="Recompute loss and gradients of a step that failed, in one process, from the newest checkpoint "
        "before it and the samples of all ranks, and print the first module with non-finite output.",
    )
    replay.add_argument("path", type=Path, metavar="RUN", help="run directory, runs/NAME")
    replay.add_argument("step", type=int, metavar="STEP", help="number of the step, as in the run's message")
    add_json(replay)
    replay.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="override recipe keys, for example data.shards=DIR; a pipe: command of the recorded recipe runs only if "
        "it is repeated here",
    )
    replay.set_defaults(run=_run_replay)


def _run_replay(options: argparse.Namespace) -> None:
    with results_alone_on_stdout():
        from bali_ds.training.replay import replay

        report = replay(options.path, options.step, options.overrides)
    emit(report, options.json, _replay_text)


def _replay_text(report: dict[str, Any]) -> str:
    lines = [f"step {report['step']} with the weights of step {report['checkpoint']}"]
    lines += [f"  {name}: {value:g}" for name, value in report["loss"].items()]
    module, parameters = report["module"], report["parameters"]
    lines.append(f"first module with non-finite output: {module or 'none'}")
    lines.append(f"parameters with non-finite gradients: {', '.join(parameters[:10]) or 'none'}")
    for rank in report["ranks"]:
        concepts = ", ".join(rank["concepts"][:10]) or "none"
        lines.append(f"rank {rank['rank']} on {rank['host']}: concepts with non-finite vectors: {concepts}")
        lines.append(f"  samples {' '.join(rank['samples'])}")
    return "\n".join(lines)
