"""The command that looks closer at a step that went wrong."""

import argparse
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from bali_ds.cli.common import emit


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this group's commands to the program."""
    replay = commands.add_parser(
        "replay",
        help="compute a refused step again and say where its numbers end",
        description="Compute the loss and gradients of a step that a run refused, with the newest checkpoint before "
        "it and the samples of all its ranks, in one process, and name the first module that goes wrong.",
    )
    replay.add_argument("path", type=Path, metavar="RUN", help="the run's directory, runs/NAME")
    replay.add_argument("step", type=int, metavar="STEP", help="number of the step, as the run said")
    replay.add_argument("--json", action="store_true", help="print JSON")
    replay.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="change the recipe, e.g. data.shards=DIR; a pipe: command that a run directory names is not run otherwise",
    )
    replay.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    # DeepSpeed speaks on the standard output as soon as it is imported.
    with redirect_stdout(sys.stderr):
        from bali_ds.training.replay import replay

        report = replay(options.path, options.step, options.overrides)
    emit(report, options.json, lambda: _text(report))


def _text(report: dict[str, Any]) -> str:
    lines = [f"step {report['step']} with the weights of step {report['checkpoint']}"]
    lines += [f"  {name}: {value:g}" for name, value in report["loss"].items()]
    module, parameters = report["module"], report["parameters"]
    lines.append(f"first module that gives out what is no number: {module or 'none'}")
    lines.append(f"gradients that are none: {', '.join(parameters[:10]) or 'none'}")
    for rank in report["ranks"]:
        lines.append(
            f"rank {rank['rank']} on {rank['host']}: concepts {', '.join(rank['concepts'][:10]) or 'all sound'}"
        )
        lines.append(f"  samples {' '.join(rank['samples'])}")
    return "\n".join(lines)
