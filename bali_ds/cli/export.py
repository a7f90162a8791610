"""Commands that write a trained encoder as fp16 weights."""

import argparse
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

from bali_ds.cli.common import add_overwrite, emit


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this group's commands to the program."""
    export = commands.add_parser(
        "export",
        help="write the trained encoder of a run as a Hugging Face directory",
        description="Consolidate the newest checkpoint of a run, of any ZeRO stage and world size, into a Hugging Face "
        "directory, and compare every tensor with the checkpoint.",
    )
    export.add_argument("path", type=Path, metavar="RUN", help="the run's directory, runs/NAME")
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="the directory to write")
    add_overwrite(export)
    export.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    export.add_argument("--step", type=int, metavar="N", help="the checkpoint of this step (default: the newest)")
    export.add_argument("--onnx", action="store_true", help="also onnx/model.onnx, checked against torch")
    export.add_argument("--push", metavar="REPO", help="then upload to this repository of the Hugging Face hub")
    export.add_argument("--json", action="store_true", help="print JSON")
    export.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    # DeepSpeed speaks on the standard output as soon as it is imported.
    with redirect_stdout(sys.stderr):
        from bali_ds.export.push import push
        from bali_ds.export.run import export_run
        from bali_ds.training.run_lock import RunLock

        within = options.out.resolve().is_relative_to(options.path.resolve())
        with RunLock(options.path) if within else nullcontext():
            report = export_run(
                options.path,
                options.out,
                options.dtype,
                step=options.step,
                onnx=options.onnx,
                overwrite=options.overwrite,
            )
        if options.push:
            report["url"] = push(options.out, options.push)
    emit(
        report,
        options.json,
        lambda: (
            f"{report['out']}: step {report['step']}, {report['parameters'] / 1e6:.1f} M parameters "
            f"as {report['dtype']}, {report['bytes'] / 1e6:.1f} MB; "
            f"all {report['tensors']} tensors equal the checkpoint"
            + (f"; uploaded to {report['url']}" if options.push else "")
        ),
    )
