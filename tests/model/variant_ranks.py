"""Run by two processes: every variant at every ZeRO stage takes three steps, the last two of unusual batches."""

import json
import sys
from dataclasses import replace
from pathlib import Path

from bali_ds.checkpoint.manager import RunProgress
from bali_ds.config import Recipe
from bali_ds.data.sampler import Position
from bali_ds.distributed import Ranks
from bali_ds.planning.run_data import RunData
from bali_ds.training.process_group import joined_ranks
from bali_ds.training.step import train_step
from tests.engines import at_stage, engine_of
from tests.leaving import leave
from tests.model.odd_batches import with_hub, without_mentions


def losses(recipe: Recipe, data: RunData, ranks: Ranks) -> list[dict[str, float]]:
    engine = engine_of(recipe, data, ranks.world_size)
    progress, found = RunProgress(0, Position()), []
    for _, batch in zip(range(3), data.loader(recipe, ranks.rank, ranks.world_size), strict=False):
        micro_batches = list(batch.micro_batches)
        if progress.step == 1 and ranks.rank == 1:
            micro_batches = [without_mentions(micro_batch) for micro_batch in micro_batches]
        if progress.step == 2 and ranks.rank == 0 and len(micro_batches[0].targets):
            micro_batches[0] = with_hub(micro_batches[0])
        result = train_step(engine, replace(batch, micro_batches=tuple(micro_batches)), progress)
        progress = result.progress
        found.append({name: float(value) for name, value in result.outputs.items() if not value.ndim})
    engine.destroy()
    return found


def main() -> None:
    recipes = [Recipe.model_validate(values) for values in json.loads(Path(sys.argv[1]).read_text())]
    data = RunData.open(recipes[0])
    found = {}
    with joined_ranks() as ranks:
        for recipe in recipes:
            for stage in map(int, sys.argv[3]):
                print(recipe.name, stage, flush=True)
                found[f"{recipe.name}-{stage}"] = losses(at_stage(recipe, stage), data, ranks)
        if ranks.is_first:
            Path(sys.argv[2]).write_text(json.dumps(found))
    leave()


main()
