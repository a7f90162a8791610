"""Commands that draw the page of a run."""

import argparse
from pathlib import Path


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this group's commands to the program."""
    report = commands.add_parser(
        "report",
        help="write the page of a run: curves, evaluation, recipe",
        description="Write report.html into the run's directory: one file that needs no network.",
    )
    report.add_argument("path", type=Path, metavar="RUN", help="the run's directory, runs/NAME")
    report.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from bali_ds.evaluation.report import write_report

    print(write_report(options.path))
