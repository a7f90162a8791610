"""Trains with a decoder on two ranks at every ZeRO stage, to the end of each run."""

import sys
from pathlib import Path

from bali_ds.config import Recipe
from bali_ds.training.trainer import train
from tests.engines import at_stage
from tests.forked import run_forked
from tests.training.cases import STAGES


def job(recipe: Recipe) -> None:
    train(recipe)


def main() -> None:
    recipe = Recipe.model_validate_json(Path(sys.argv[1]).read_text())
    for stage in STAGES:
        run_forked(2, job, at_stage(recipe, stage, name=f"stage-{stage}"))


main()
