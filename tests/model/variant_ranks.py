"""Run by two processes: every variant at every ZeRO stage takes three steps, the last two of them odd ones."""

import json
import sys
from pathlib import Path

from bali_ds.config import Recipe
from bali_ds.data.loader import Loader
from bali_ds.data.settings import StreamSettings
from bali_ds.model.build_model import build_aligner
from bali_ds.planning.batch_plan import plan_batches
from bali_ds.training.engine import build_engine, deepspeed_settings
from bali_ds.training.joining import joined_ranks
from bali_ds.training.run_directory import RunData
from tests.leaving import leave
from tests.model.odd_batches import with_hub, without_mentions


def losses(recipe: Recipe, data: RunData, rank: int) -> list[float]:
    settings = deepspeed_settings(recipe, plan_batches(recipe, 2, len(data.shards.split("train"))))
    settings["zero_optimization"] |= {"stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0}
    engine = build_engine(build_aligner(recipe, 2 * data.graph.num_relations, data.shards), recipe, settings)
    loader = Loader(
        data.shards, data.graph, StreamSettings.of(recipe),
        global_batch=recipe.batch.passages, micro_batches=recipe.batch.micro_batches, rank=rank, world_size=2,
    )  # fmt: skip
    found = []
    for number, step in zip(range(3), loader, strict=False):
        micro_batches = list(step.micro_batches)
        if number == 1 and rank == 1:
            micro_batches = [without_mentions(micro_batch) for micro_batch in micro_batches]
        if number == 2 and rank == 0 and len(micro_batches[0].targets):
            micro_batches[0] = with_hub(micro_batches[0])
        loss, parts = engine(micro_batches)
        engine.backward(loss)
        engine.step()
        found.append({name: float(value) for name, value in parts.items() if not value.ndim})
    engine.destroy()
    return found


def main() -> None:
    recipes = [Recipe.model_validate(values) for values in json.loads(Path(sys.argv[1]).read_text())]
    data = RunData.open(recipes[0])
    found = {}
    with joined_ranks() as ranks:
        for recipe in recipes:
            for stage in map(int, sys.argv[3]):
                changed = recipe.model_copy(update={"deepspeed": recipe.deepspeed.with_name(f"zero{stage}.json")})
                print(recipe.name, stage, flush=True)
                found[f"{recipe.name}-{stage}"] = losses(changed, data, ranks.rank)
        if ranks.is_first:
            Path(sys.argv[2]).write_text(json.dumps(found))
    leave()


main()
