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
from typing import NoReturn

from bali_ds.config import Recipe, load_recipe
from bali_ds.errors import InputError


def main() -> int:
    """Train, then, on rank 0, export, evaluate and report.

    Returns the exit status: 0 complete, 2 a mistake in recipe or data, 3 loss or gradient is no
    number any more, 4 the last checkpoint could not be written, 75 stopped with a checkpoint to go on from.
    """
    options = _options()
    first = os.environ.get("RANK", os.environ.get("OMPI_COMM_WORLD_RANK", "0")) == "0"
    logging.basicConfig(level=logging.INFO if first else logging.WARNING, format="%(message)s", force=True)
    for library in ("httpx", "httpcore", "urllib3", "DeepSpeed", "transformers", "matplotlib"):
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        recipe = load_recipe(options.config, options.overrides)
        return _job(recipe, resume=options.resume == "auto", first=first)
    except InputError as error:
        if first:
            print(f"train: {error}", file=sys.stderr, flush=True)
        return 2


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
        "overrides", nargs="*", metavar="key=value", help="change the recipe, e.g. optimiser.warmup=0.1"
    )
    return parser.parse_intermixed_args()


def _job(recipe: Recipe, *, resume: bool, first: bool) -> int:
    # Heavy imports wait until the recipe is known to be sound.
    from transformers.utils import logging as transformers_logging

    from bali_ds.export.conclusion import conclude, concluded, results
    from bali_ds.training.checkpoint import NOT_SAVED, NotSaved
    from bali_ds.training.guard import DIVERGED, Diverged
    from bali_ds.training.loop import train
    from bali_ds.training.stopping import STOPPED, Stopped

    transformers_logging.disable_progress_bar()
    # DeepSpeed calls collectives by names that this torch is about to drop.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")

    def leave(number: int, _: FrameType | None) -> NoReturn:
        raise Stopped(f"stopped by {signal.Signals(number).name}; the same command goes on from there")

    # The loop takes these over, and takes its time; before and after it nothing would be lost.
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, leave)
    try:
        if not resume or not concluded(recipe):
            step = train(recipe, resume=resume)
            if first:
                conclude(recipe, step)
        elif first:
            print(f"{recipe.directory} is complete; --resume never trains it afresh\n")
        if first:
            print(results(recipe), flush=True)
    except (Stopped, Diverged, NotSaved) as ended:
        if first:
            print(f"train: {ended}", file=sys.stderr, flush=True)
        return {Stopped: STOPPED, Diverged: DIVERGED, NotSaved: NOT_SAVED}[type(ended)]
    return 0


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
