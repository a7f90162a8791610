"""The training command, which each rank runs under a launcher: train, export, evaluate, report."""

import argparse
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from types import FrameType
from typing import NoReturn

from bali_ds.bus_errors import handle_bus_errors
from bali_ds.cli.common import add_recipe, add_resume, recipe_of
from bali_ds.cli.parser import Parser
from bali_ds.cli.verbosity import start_output
from bali_ds.config import load_recipe
from bali_ds.errors import InputError, LostRank, RunEnded, exit_status, missing_package
from bali_ds.terminal import message, print_progress, print_result
from bali_ds.training.train_log import TrainLog


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the training command to a parser."""
    add_recipe(parser)
    add_resume(parser)
    parser.add_argument("--local_rank", type=int, default=0, help="set by the launcher")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments of the process, or others, and run the command; return its exit status."""
    parser = Parser(prog="launch/train.py", description="Train the model of a recipe.")
    add_arguments(parser)
    return run_train(parser.parse_args(arguments))


def run_train(options: argparse.Namespace) -> int:
    """Train, then, on rank 0, export, evaluate and report.

    Returns the exit status, the same on every rank; rank 0 prints one line for 2, 3, 4 and 75:

    - 0: complete.
    - 1: an unforeseen error, also in a loader worker; its traceback is in the output of the rank that met it.
    - 2: a mistake in recipe or data, or ranks whose recipes or data differ.
    - 3: loss or gradients became non-finite, or the loss spiked again and again.
    - 4: the checkpoint of the last step could not be written; nothing was exported.
    - 75: interrupted by a signal, a time limit, a killed loader worker or a lost host; the same command resumes.
    """
    handle_bus_errors()
    is_first = _environment("RANK", "OMPI_COMM_WORLD_RANK", "0") == "0"
    start_output(options, logging.INFO if is_first else logging.WARNING)
    log = TrainLog()
    with log.running() if is_first else nullcontext():
        try:
            _run_job(options, log if is_first else None)
        except (InputError, RunEnded) as ended:
            line = f"train: {message(ended)}"
            # every other rank finds out by itself that one, perhaps rank 0, is lost
            if is_first or isinstance(ended, LostRank):
                print(line, file=sys.stderr, flush=True)
            log.write(line)
            return exit_status(ended)
    return 0


def _run_job(options: argparse.Namespace, log: TrainLog | None) -> None:
    try:
        path, overrides = recipe_of(options)
        recipe = load_recipe(path, overrides)
        if log:
            print_progress(f"{' '.join([path, *overrides])}: loading torch and DeepSpeed")
        # Heavy imports wait until the recipe is known to be valid.
        from transformers.utils import logging as transformers_logging

        from bali_ds.export.finalize import finalize, is_finalized, results_table
        from bali_ds.training.trainer import train
    except ModuleNotFoundError as error:
        raise missing_package(error, "train") from error
    except Exception as error:
        if _environment("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "1") != "1":
            from bali_ds.training.process_group import raise_after_joining

            raise_after_joining(error)
        raise

    transformers_logging.disable_progress_bar()
    # DeepSpeed calls collectives by names that torch has deprecated.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    _stop_on_signals()
    if options.resume == "never" or not is_finalized(recipe):
        step = train(recipe, resume=options.resume == "auto", log=log)
        if log and recipe.evaluation.when == "after":
            finalize(recipe, step)
    elif log:
        print_progress(f"{recipe.directory} is complete; --resume never trains it afresh\n")
    if log and recipe.evaluation.when == "separate":
        print_progress(f"trained; export and evaluate on one machine: bali-ds finalize {recipe.directory}\n")
    elif log and recipe.evaluation.when == "after":
        print_result(results_table(recipe))


def _stop_on_signals() -> None:
    """Raise `Stopped` on a signal. The training loop, which has progress to save, replaces these handlers."""
    from bali_ds.training.preemption import Stopped
    from bali_ds.training.process_group import EXITING

    def stop(number: int, _: FrameType | None) -> None:
        if not EXITING.is_set():
            raise Stopped(f"stopped by {signal.Signals(number).name}; the same command resumes from there")

    EXITING.clear()
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, stop)


def _environment(name: str, of_mpirun: str, default: str) -> str:
    return os.environ.get(name, os.environ.get(of_mpirun, default))


def main_status(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status of `main`, whatever it raises; print the traceback of an unforeseen error."""
    try:
        return main(arguments)
    except SystemExit as exiting:
        return int(exiting.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1


def run_process(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command with the arguments of the process, or others, and end the process with its exit status."""
    status = main_status(arguments)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # what cannot be written does not change how the run ended
            stream.flush()
    # Threads of the process groups may still be ending. An ordinary exit then aborts now and then ("terminate called
    # without an active exception"), and a complete run would look like a failed one.
    os._exit(status)


if __name__ == "__main__":
    run_process()
