"""Options and output that several groups of commands share."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from bali_ds.errors import InputError
from bali_ds.terminal import json_line, printable_values, verbosity


def emit(value: Any, as_json: bool, readable: Callable[[Any], str]) -> None:
    """Print `value` as JSON, or the text that `readable` makes of it; strings in it are made printable first."""
    print(json_line(value) if as_json else readable(printable_values(value)))


def note(text: str) -> None:
    """Say on a terminal what takes seconds from now on; a redirected stream holds errors alone, a quiet one too."""
    if sys.stderr and sys.stderr.isatty() and verbosity() != "quiet":
        print(f"bali-ds: {text}", file=sys.stderr, flush=True)


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """Add --overwrite to a command that writes a directory --out."""
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace --out even if it holds files that this command did not write",
    )


def add_json(parser: argparse.ArgumentParser, what: str = "the result") -> None:
    """Add --json to a command that reports."""
    parser.add_argument("--json", action="store_true", help=f"print {what} as JSON")


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Add the recipe of a run and changes of its keys; `recipe_of` returns both."""
    parser.add_argument("--config", metavar="RECIPE", help=argparse.SUPPRESS)
    parser.add_argument(
        "recipe", nargs="?", metavar="RECIPE", help="YAML file, or a recipe that ships with bali-ds, such as sample"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="change keys of the recipe, for example optimizer.warmup=0.1"
    )


def add_resume(parser: argparse.ArgumentParser) -> None:
    """Add --resume to a command that trains."""
    parser.add_argument(
        "--resume",
        choices=("auto", "never"),
        default="auto",
        help="auto: resume from the newest complete checkpoint; never: remove an existing run first "
        "(default: %(default)s)",
    )


def recipe_of(options: argparse.Namespace) -> tuple[str, list[str]]:
    """Return the recipe of the command line and the changes of its keys; `--config RECIPE` is the same as RECIPE.

    Raises:
        InputError: no recipe is given.
    """
    given = [each for each in (options.config, options.recipe, *options.overrides) if each is not None]
    if not given or (options.config is None and "=" in given[0]):
        raise InputError("no recipe is given; name a YAML file, or one that ships with bali-ds, such as sample")
    return given[0], given[1:]


def positive(text: str) -> int:
    """Return the value of an option that counts something, at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def seed(text: str) -> int:
    """Return the value of an option --seed, from 0 to 2**63 - 1."""
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError("must be from 0 to 2**63 - 1")
    return value


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device to a command that runs a model."""
    parser.add_argument(
        "--device", default="auto", help="device of the model: auto, cpu or cuda (default: %(default)s)"
    )


def interval(measure: dict[str, float], sign: str = "") -> str:
    """Return a table cell of 24 characters: a fraction and its interval in percent."""
    value, low, high = (100 * measure[key] for key in ("value", "low", "high"))
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]".rjust(24)


def share(text: str) -> float:
    """Read an option's value in 0..1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError("must be at least 0 and at most 1")
    return value


def only_with(options: argparse.Namespace, other: str, *names: str) -> None:
    """Refuse options that are given without another one, which gives them a meaning; None is not given."""
    if not getattr(options, other):
        for name in names:
            if getattr(options, name) is not None:
                raise InputError(f"--{name.replace('_', '-')}: only with --{other.replace('_', '-')}")


def choose_device(device: str = "auto") -> int:
    """Choose DeepSpeed's accelerator unless DS_ACCELERATOR names it, and return the number of GPUs, 0 for a CPU run."""
    if device == "cpu" or os.environ.get("DS_ACCELERATOR") == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
        return 0
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not gpus:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    return gpus


@contextmanager
def results_alone_on_stdout() -> Iterator[None]:
    """Send to stderr what DeepSpeed prints to stdout when it is imported within, and choose its accelerator.

    DeepSpeed warns on every machine without a GPU if it has to choose.
    """
    choose_device()
    with redirect_stdout(sys.stderr):
        yield
