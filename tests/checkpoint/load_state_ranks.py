"""Runs all scenarios and writes the loss of each of their steps."""

import json
import sys
from itertools import groupby
from pathlib import Path

from bali_ds.checkpoint.manager import CheckpointManager, RunProgress
from bali_ds.config import CheckpointConfig, Recipe
from bali_ds.data.sampler import Position
from bali_ds.distributed import Ranks
from bali_ds.planning.run_data import RunData
from bali_ds.training.process_group import joined_ranks
from bali_ds.training.step import train_step
from tests.checkpoint.scenarios import SCENARIOS, Scenario
from tests.engines import at_stage, engine_of
from tests.forked import run_forked


def losses_of(scenario: Scenario, recipe: Recipe, data: RunData, ranks: Ranks, out: Path) -> list[float]:
    """Resume, take the steps and save, as a scenario says; return the loss of each step."""
    engine = engine_of(recipe, data, ranks.world_size, persistence_threshold=600)
    identity = {"data": "same", "world size": ranks.world_size, "ZeRO stage": engine.zero_optimization_stage()}

    def checkpoints(of: Scenario) -> CheckpointManager:
        return CheckpointManager(out / of.name, ranks, CheckpointConfig(), identity=identity)

    progress: RunProgress | None = RunProgress(0, Position())
    if scenario.resumed:
        progress = checkpoints(scenario.resumed).restore(engine)
    assert progress is not None
    assert progress.step == scenario.first_step
    losses = []
    loader = data.loader(recipe, ranks.rank, ranks.world_size, progress.position)
    for _, batch in zip(range(scenario.steps), loader, strict=False):
        result = train_step(engine, batch, progress, learning_rate_factor=1 / (progress.step + 1))
        progress = result.progress
        losses.append(float(result.outputs["loss"]))
    if scenario.saves:
        saved = checkpoints(scenario)
        saved.save(engine, progress)
        assert saved.finish()
    engine.destroy()
    return losses


def job(recipe: Recipe, out: Path, scenarios: list[Scenario]) -> None:
    """Run scenarios with one number of ranks."""
    data = RunData.open(recipe)
    with joined_ranks() as ranks:
        for scenario in scenarios:
            losses = losses_of(scenario, at_stage(recipe, scenario.stage), data, ranks, out)
            if ranks.is_first:
                (out / f"{scenario.name}.json").write_text(json.dumps(losses))


def main() -> None:
    recipe = Recipe.model_validate_json(Path(sys.argv[1]).read_text())
    for world_size, scenarios in groupby(SCENARIOS, key=lambda each: each.ranks):
        run_forked(world_size, job, recipe, Path(sys.argv[2]), list(scenarios))


main()
