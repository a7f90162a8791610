"""Command line of bali-ds: one module per group of commands. Parsing imports neither torch nor deepspeed."""

import argparse
import errno
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

import bali_ds
from bali_ds.bus_errors import handle_bus_errors
from bali_ds.cli import completion, evaluate, graph, inference, init, launcher, plan_and_doctor, runs, shards
from bali_ds.cli.common import note
from bali_ds.cli.parser import Parser
from bali_ds.cli.verbosity import start_output
from bali_ds.errors import InputError, missing_package, system_error
from bali_ds.terminal import message

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
EXTRAS = {
    "completion": "data", "evaluate": "eval", "graph": "data", "inference": "infer", "init": "infer",
    "launcher": "train", "plan_and_doctor": "train", "runs": "train", "shards": "data",
}  # fmt: skip
"""Group of commands, and the extra in setup.py with the packages that it needs."""
GROUPS = (init, graph, shards, plan_and_doctor, launcher, runs, evaluate, inference, completion)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the program with all commands."""
    top = Parser(
        prog="bali-ds",
        description="Align biomedical language models with knowledge graphs. Try it with: bali-ds train sample",
    )
    top.add_argument("--version", action="version", version=f"bali-ds {bali_ds.__version__}", help="print the version")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for group in GROUPS:
        group.add_commands(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 for success, 1 for failed checks, 2 for invalid input."""
    handle_bus_errors()
    options = parser().parse_args(arguments)
    start_output(options)
    run: Callable[[argparse.Namespace], int | None] = options.run
    group = run.__module__.rpartition(".")[2]
    if EXTRAS[group] != "data" and group != "launcher":
        note("loading torch")
    try:
        status = run(options) or 0
        if sys.stdout:  # None where it was closed before the start
            sys.stdout.flush()
    except InputError as error:
        print(f"bali-ds: {message(error)}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        lacking = missing_package(error, EXTRAS[group])
        print(f"bali-ds: {message(lacking)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bali-ds: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    except OSError as error:
        if error.filename is not None or error.errno not in _FULL:
            raise
        print(f"bali-ds: standard output cannot be written: {system_error(error)}", file=sys.stderr)
        with suppress(OSError):
            sys.stdout.close()
        return 2
    return status
