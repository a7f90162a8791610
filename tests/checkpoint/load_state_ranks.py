"""Goes on from checkpoints of every stage at every stage, on as many and on fewer ranks; writes the losses down."""

import json
import sys
from pathlib import Path

from bali_ds.checkpoint.manager import CheckpointManager, RunProgress
from bali_ds.config import CheckpointConfig, Recipe
from bali_ds.data.loader import Loader
from bali_ds.data.sampler import Position
from bali_ds.data.settings import StreamSettings
from bali_ds.distributed import Ranks
from bali_ds.model.build_model import build_aligner
from bali_ds.planning.batch_plan import plan_batches
from bali_ds.training.engine import build_engine, deepspeed_settings, set_learning_rates
from bali_ds.training.joining import joined_ranks
from bali_ds.training.run_directory import RunData
from tests.forked import run_forked
from tests.training.cases import STAGES


def go_on(recipe: Recipe, data: RunData, ranks: Ranks, *, begin: Path, end: Path | None, steps: int) -> list[float]:
    """Take steps from the checkpoint in `begin`, if there is one, and save one in `end`; return their losses."""
    settings = deepspeed_settings(recipe, plan_batches(recipe, ranks.world_size, len(data.shards.split("train"))))
    settings["zero_optimization"] |= {"stage3_param_persistence_threshold": 600, "stage3_max_reuse_distance": 0}
    engine = build_engine(build_aligner(recipe, 2 * data.graph.num_relations), recipe, settings)
    identity = {"data": "same", "world size": ranks.world_size, "ZeRO stage": engine.zero_optimization_stage()}
    restored = CheckpointManager(begin, ranks, CheckpointConfig(), identity=identity).restore(engine)
    progress = restored or RunProgress(0, Position())
    loader = Loader(
        data.shards, data.graph, StreamSettings.of(recipe), global_batch=recipe.batch.passages,
        rank=ranks.rank, world_size=ranks.world_size, start=progress.position,
    )  # fmt: skip
    losses = []
    for _, step in zip(range(steps), loader, strict=False):
        set_learning_rates(engine, 1 / (progress.step + 1))
        loss, parts = engine(step.micro_batches)
        engine.backward(loss)
        engine.step()
        losses.append(float(parts["loss"]))
        progress = RunProgress(progress.step + 1, step.position_after)
    if end:
        saved = CheckpointManager(end, ranks, CheckpointConfig(), identity=identity)
        saved.save(engine, progress)
        assert saved.finish()
    engine.destroy()
    return losses


def job(recipe: Recipe, out: Path, turns: list[tuple[str, str, str | None, int]]) -> None:
    """Take turns: configuration, name of the checkpoint to begin with, name of the one to end with, steps."""
    data = RunData.open(recipe)
    with joined_ranks() as ranks:
        for stage, begin, end, steps in turns:
            changed = recipe.model_copy(update={"deepspeed": recipe.deepspeed.with_name(f"zero{stage}.json")})
            losses = go_on(changed, data, ranks, begin=out / begin, end=out / end if end else None, steps=steps)
            if ranks.is_first:
                with (out / "losses.jsonl").open("a") as stream:
                    stream.write(json.dumps([ranks.world_size, stage, begin, losses]) + "\n")


def main() -> None:
    recipe = Recipe.model_validate_json(Path(sys.argv[1]).read_text())
    out = Path(sys.argv[2])
    run_forked(2, job, recipe, out, [(stage, "none", f"2-{stage}", 2) for stage in STAGES] + [(1, "none", None, 6)])
    run_forked(1, job, recipe, out, [(1, "2-2", "1-1", 2)] + [(stage, f"2-{stage}", None, 1) for stage in STAGES])
    pairs = [(2, 0), (0, 1), (3, 2), (1, 3), (0, 0), (3, 3)]
    run_forked(2, job, recipe, out, [(new, f"2-{old}", None, 2) for old, new in pairs] + [(3, "1-1", None, 2)])


main()
