"""Two ranks train with cached names, save under ZeRO 3 in mid life of the table, and go on in other engines."""

import sys
from pathlib import Path

import torch

from bali_ds.checkpoint.manager import CheckpointManager, RunProgress
from bali_ds.config import CheckpointConfig, Recipe
from bali_ds.data.loader import Loader
from bali_ds.data.sampler import Position
from bali_ds.data.settings import StreamSettings
from bali_ds.distributed import Ranks
from bali_ds.model.build_model import build_aligner
from bali_ds.planning.batch_plan import plan_batches
from bali_ds.training.engine import build_engine, deepspeed_settings
from bali_ds.training.joining import joined_ranks
from bali_ds.training.run_directory import RunData
from tests.leaving import leave


class Run:
    """An engine of a ZeRO stage that keeps what its table holds."""

    def __init__(self, recipe: Recipe, data: RunData, ranks: Ranks, stage: int, checkpoints: Path) -> None:
        changed = recipe.model_copy(update={"deepspeed": recipe.deepspeed.with_name(f"zero{stage}.json")})
        settings = deepspeed_settings(changed, plan_batches(changed, 2, len(data.shards.split("train"))))
        settings["zero_optimization"] |= {"stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0}
        self.engine = build_engine(build_aligner(changed, 2 * data.graph.num_relations, data.shards), changed, settings)
        identity = {"data": "same", "world size": 2, "ZeRO stage": stage}
        self.checkpoints = CheckpointManager(checkpoints, ranks, CheckpointConfig(), identity=identity)
        self.progress = self.checkpoints.restore(self.engine) or RunProgress(0, Position())
        self.loader = Loader(
            data.shards, data.graph, StreamSettings.of(recipe), global_batch=recipe.batch.passages,
            rank=ranks.rank, world_size=2, start=self.progress.position,
        )  # fmt: skip
        self.kept = [self.table()]

    def table(self) -> dict[str, torch.Tensor]:
        table = self.engine.module.table
        return {"vectors": table.vectors.clone(), "age": table.age.clone()}

    def steps(self, count: int) -> None:
        """Take steps; keep the loss of each and the table after it."""
        for _, step in zip(range(count), self.loader, strict=False):
            loss, _ = self.engine(step.micro_batches)
            self.engine.backward(loss)
            self.engine.step()
            self.progress = RunProgress(self.progress.step + 1, step.position_after)
            self.kept.append({"loss": loss.detach(), **self.table()})


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
