"""The main job: recipe in, trained and evaluated encoder out.

deepspeed [--hostfile HOSTS] launch/train.py --config RECIPE [key=value ...]
"""

import argparse
import logging
import os
import signal
import sys
import traceback
import warnings
from pathlib import Path
from types import FrameType

from bali_ds.config import load_recipe
from bali_ds.errors import InputError, LostRank, RunEnded, exit_status


def main() -> int:
    """Train, then, on rank 0, export, evaluate and report.

    Returns the exit status, the same on every rank; rank 0 prints one line for 2, 3, 4 and 75:

    - 0: complete.
    - 1: an error that nobody foresaw, also in a loader worker; its traceback is in the output of the rank that met it.
    - 2: a mistake in recipe or data, or ranks whose recipes or data differ.
    - 3: the loss or a gradient became non-finite, or the loss jumped again and again.
    - 4: the checkpoint of the last step could not be written; nothing was exported.
    - 75: interrupted by a signal, a time limit, a killed loader worker or a lost host; the same command resumes.
    """
    options = _options()
    first = os.environ.get("RANK", os.environ.get("OMPI_COMM_WORLD_RANK", "0")) == "0"
    logging.basicConfig(level=logging.INFO if first else logging.WARNING, format="%(message)s", force=True)
    for library in ("httpx", "httpcore", "urllib3", "DeepSpeed", "transformers", "matplotlib"):
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        _job(options, first=first)
    except (InputError, RunEnded) as ended:
        # of a lost rank, which may be the first, each of the others learns by itself
        if first or isinstance(ended, LostRank):
            print(f"train: {ended}", file=sys.stderr, flush=True)
        return exit_status(ended)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="launch/train.py", description="Train as a recipe says.")
    parser.add_argument("--config", type=Path, required=True, metavar="RECIPE", help="YAML file of the run")
    parser.add_argument(
        "--resume",
        choices=("auto", "never"),
        default="auto",
        help="auto: go on from the newest complete checkpoint; never: remove an existing run first",
    )
    parser.add_argument("--local_rank", type=int, default=0, help="set by the launcher")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="change the recipe, e.g. optimizer.warmup=0.1"
    )
    return parser.parse_intermixed_args()


def _job(options: argparse.Namespace, *, first: bool) -> None:
    try:
        recipe = load_recipe(options.config, options.overrides)
        # Heavy imports wait until the recipe is known to be valid.
        from transformers.utils import logging as transformers_logging

        from bali_ds.export.finalize import finalize, is_finalized, results_table
        from bali_ds.training.preemption import Stopped
        from bali_ds.training.rank_errors import LEAVING
        from bali_ds.training.trainer import train
    except Exception as error:
        if os.environ.get("WORLD_SIZE", os.environ.get("OMPI_COMM_WORLD_SIZE", "1")) != "1":
            from bali_ds.training.rank_errors import raise_after_joining

            raise_after_joining(error)
        raise

    transformers_logging.disable_progress_bar()
    # DeepSpeed calls collectives by names that this torch is about to drop.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")

    def leave(number: int, _: FrameType | None) -> None:
        if not LEAVING.is_set():
            raise Stopped(f"stopped by {signal.Signals(number).name}; the same command resumes from there")

    # The loop takes these over, and takes its time; before and after it nothing would be lost.
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, leave)
    if options.resume == "never" or not is_finalized(recipe):
        step = train(recipe, resume=options.resume == "auto")
        if first:
            finalize(recipe, step)
    elif first:
        print(f"{recipe.directory} is complete; --resume never trains it afresh\n")
    if first:
        print(results_table(recipe), flush=True)


def _status() -> int:
    try:
        return main()
    except SystemExit as leaving:
        return int(leaving.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    status = _status()
    sys.stdout.flush()
    sys.stderr.flush()
    # Nothing is left to do, but threads of the process groups may still be ending: an ordinary exit then aborts now and
    # then ("terminate called without an active exception"), and a complete run would look like a failed one.
    os._exit(status)
