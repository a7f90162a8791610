"""Commands that check a recipe and machines before a run: `plan` and `doctor`."""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from bali_ds.cli.common import add_json, add_recipe, emit, note, only_with, positive, recipe_of
from bali_ds.errors import InputError

if TYPE_CHECKING:
    from bali_ds.config import Recipe


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this group's commands to the program."""
    plan = commands.add_parser(
        "plan",
        help="print batch sizes, steps, memory and traffic of a recipe without starting it",
        description="Print the batch plan of a recipe, the memory of one rank and its traffic at each ZeRO stage; or "
        "with --gpus the time that it takes on GPUs that are not here. Nothing is started.",
    )
    add_recipe(plan)
    ranks = plan.add_mutually_exclusive_group()
    ranks.add_argument("--hostfile", type=Path, metavar="FILE", help="use as many ranks as the hostfile has slots")
    ranks.add_argument("--ranks", type=positive, default=1, metavar="N", help="number of ranks (default: %(default)s)")
    ranks.add_argument(
        "--gpus", type=positive, nargs="+", metavar="N",
        help="project time and its parts to these numbers of GPUs; the recipe's batch is that of the first, and needs "
        "neither graph nor shards",
    )  # fmt: skip
    plan.add_argument(
        "--passages", type=_count, metavar="N",
        help="with --gpus: passages of the whole run, for example 37e6 (default: those of the recipe)",
    )  # fmt: skip
    plan.add_argument("--card", metavar="NAME", help="with --gpus: the GPU (default: H100)")
    plan.add_argument("--price", type=float, metavar="P", help="with --gpus: price of a GPU-hour, to print the cost")
    plan.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="device of the ranks (default: %(default)s)"
    )
    plan.add_argument(
        "--samples-per-second", type=float, metavar="RATE",
        help="measured or expected throughput over all ranks, to estimate the duration",
    )  # fmt: skip
    add_json(plan, "the plan")
    plan.set_defaults(run=_plan)
    doctor = commands.add_parser(
        "doctor",
        help="check this machine and the hosts of a hostfile before a run",
        description="Check packages, compiler, GPUs, network, memory, disk and environment of this machine, and over "
        "ssh those of other hosts. The exit status is 1 if a check fails.",
    )
    doctor.add_argument("--hostfile", type=Path, metavar="FILE", help="also check these hosts over ssh")
    doctor.add_argument(
        "--ssh-port", type=positive, metavar="PORT", help="port of the hosts' ssh servers (default: that of ssh)"
    )
    doctor.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="directory of the runs (default: %(default)s)"
    )
    add_json(doctor, "the results")
    doctor.set_defaults(run=_doctor)


def _plan(options: argparse.Namespace) -> None:
    from bali_ds.config import load_recipe

    recipe = load_recipe(*recipe_of(options))  # before torch, which takes seconds to import
    import torch

    from bali_ds.doctor.hostfile import read_hostfile
    from bali_ds.evaluation.gold_coverage import check_evaluation_files
    from bali_ds.planning.run_plan import plan, plan_text

    rate = options.samples_per_second
    if rate is not None and not rate > 0:
        raise InputError(f"--samples-per-second {rate}: must be positive")
    if options.gpus:
        _project(recipe, options)
        return
    only_with(options, "gpus", "passages", "card", "price")
    note("reading graph and shards, then measuring the largest batch")
    check_evaluation_files(recipe)
    ranks = sum(host.slots for host in read_hostfile(options.hostfile)) if options.hostfile else options.ranks
    on_gpu = torch.cuda.is_available() if options.device == "auto" else options.device == "cuda"
    planned = plan(recipe, ranks=ranks, on_gpu=on_gpu, samples_per_second=rate)
    emit(planned.as_dict(), options.json, lambda _: plan_text(planned, recipe))


def _count(text: str) -> int:
    """Parse a whole number of at least 1, also in scientific notation."""
    value = float(text)
    if not (value >= 1 and value.is_integer()):
        raise argparse.ArgumentTypeError("must be a whole number of at least 1, such as 37e6")
    return int(value)


def _project(recipe: "Recipe", options: argparse.Namespace) -> None:
    from bali_ds.planning.flops import PEAKS
    from bali_ds.planning.projection import project, projection_text

    card, price = options.card or "H100", options.price
    if card not in PEAKS:
        raise InputError(f"--card {card}: is unknown; use one of {', '.join(PEAKS)}")
    if price is not None and not 0 <= price < math.inf:
        raise InputError(f"--price {price}: must be a number of 0 or more")
    if options.samples_per_second:
        raise InputError("--samples-per-second: not with --gpus, which predicts the throughput")
    projected = project(recipe, options.gpus, passages=options.passages, card=card)
    emit(projected.as_dict() | {"price": price}, options.json, lambda _: projection_text(projected, recipe, price))


def _doctor(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from bali_ds.doctor.check_result import results_text
    from bali_ds.doctor.hostfile import read_hostfile
    from bali_ds.doctor.hosts import check_hosts
    from bali_ds.doctor.machine import check_machine

    hosts = read_hostfile(options.hostfile) if options.hostfile else []
    results = list(check_machine(options.runs.absolute()))
    results += check_hosts(hosts, ssh_port=options.ssh_port)
    emit([asdict(result) for result in results], options.json, lambda _: results_text(results))
    return int(any(result.status == "error" for result in results))
