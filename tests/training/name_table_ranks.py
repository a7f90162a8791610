"""Two ranks train with cached names, save under ZeRO 3 between two refreshes of the table, and resume."""

import sys
from pathlib import Path

import torch

from bali_ds.checkpoint.manager import CheckpointManager, RunProgress
from bali_ds.config import CheckpointConfig, Recipe
from bali_ds.data.sampler import Position
from bali_ds.distributed import Ranks
from bali_ds.planning.run_data import RunData
from bali_ds.training.process_group import joined_ranks
from bali_ds.training.step import train_step
from tests.engines import at_stage, engine_of
from tests.leaving import leave


class Run:
    """An engine of a ZeRO stage that keeps what its table holds."""

    def __init__(self, recipe: Recipe, data: RunData, ranks: Ranks, stage: int, checkpoints: Path) -> None:
        self.engine = engine_of(at_stage(recipe, stage), data, ranks.world_size)
        identity = {"data": "same", "world size": ranks.world_size, "ZeRO stage": stage}
        self.checkpoints = CheckpointManager(checkpoints, ranks, CheckpointConfig(), identity=identity)
        self.progress = self.checkpoints.restore(self.engine) or RunProgress(0, Position())
        self.loader = data.loader(recipe, ranks.rank, ranks.world_size, self.progress.position)
        self.kept = [self.table()]

    def table(self) -> dict[str, torch.Tensor]:
        table = self.engine.module.table
        return {"vectors": table.vectors.clone(), "age": table.age.clone()}

    def steps(self, count: int) -> None:
        """Take steps; keep the loss of each and the table after it."""
        for _, batch in zip(range(count), self.loader, strict=False):
            result = train_step(self.engine, batch, self.progress)
            self.progress = result.progress
            self.kept.append({"loss": result.outputs["loss"], **self.table()})


def main() -> None:
    recipe, out = Recipe.model_validate_json(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    data = RunData.open(recipe)
    with joined_ranks() as ranks:
        straight = Run(recipe, data, ranks, 3, out / "checkpoints")
        straight.steps(2)
        straight.checkpoints.save(straight.engine, straight.progress)
        assert straight.checkpoints.finish()
        straight.steps(3)
        runs = {"straight": straight}
        for stage in (3, 1):
            runs[f"stage {stage}"] = Run(recipe, data, ranks, stage, out / "checkpoints")
            runs[f"stage {stage}"].steps(3)
        torch.save({name: run.kept for name, run in runs.items()}, out / f"rank-{ranks.rank}.pt")
    leave()


main()
