"""Run by one or two processes: takes steps with every ZeRO stage and number of micro-batches, saves the weights."""

import sys
from pathlib import Path

import deepspeed
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bali_ds.config import Recipe
from bali_ds.data.loader import Loader
from bali_ds.data.settings import StreamSettings
from bali_ds.model.build_model import build_aligner
from bali_ds.planning.batch_plan import plan_batches
from bali_ds.training.engine import build_engine, deepspeed_settings
from bali_ds.training.joining import joined_ranks
from bali_ds.training.run_directory import RunData
from tests.leaving import leave
from tests.training.cases import MICRO_BATCHES, STAGES


class Reductions(TorchDispatchMode):
    """Counts the numbers that collectives add up over ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d" and "reduce" in function._schema.name:
            reduces_into = 1 if "reduce_scatter" in function._schema.name else 0
            tensors = args[reduces_into]
            self.numbers += sum(each.numel() for each in (tensors if isinstance(tensors, list) else [tensors]))
        return function(*args, **(kwargs or {}))


def weights_after(
    recipe: Recipe, data: RunData, rank: int, world_size: int
) -> tuple[dict[str, torch.Tensor], list[float], list[int]]:
    """The whole weights after the recipe's steps, the loss of each, and how many numbers each reduced over ranks."""
    settings = deepspeed_settings(recipe, plan_batches(recipe, world_size, len(data.shards.split("train"))))
    # small tensors stay whole unless told otherwise, and everything is small here; a look-ahead through a whole
    # trace of a small model takes minutes
    settings["zero_optimization"] |= {"stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0}
    engine = build_engine(build_aligner(recipe, 2 * data.graph.num_relations), recipe, settings)
    loader = Loader(
        data.shards, data.graph, StreamSettings.of(recipe),
        global_batch=recipe.batch.passages, micro_batches=recipe.batch.micro_batches, rank=rank, world_size=world_size,
    )  # fmt: skip
    losses, reduced = [], []
    for _, step in zip(range(recipe.steps), loader, strict=False):
        loss, parts = engine(step.micro_batches)
        with Reductions() as reductions:
            engine.backward(loss)
            engine.step()
        losses.append(float(parts["loss"]))
        reduced.append(reductions.numbers)
    weights = {}
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            weights[name] = parameter.detach().clone()
    engine.destroy()
    return weights, losses, reduced


def main() -> None:
    recipe = Recipe.model_validate_json(Path(sys.argv[1]).read_text())
    out = Path(sys.argv[2])
    data = RunData.open(recipe)
    with joined_ranks() as ranks:
        for stage in STAGES:
            for micro_batches in MICRO_BATCHES:
                changed = recipe.model_copy(
                    update={
                        "deepspeed": recipe.deepspeed.with_name(f"zero{stage}.json"),
                        "batch": recipe.batch.model_copy(update={"micro_batches": micro_batches}),
                    }
                )
                result = weights_after(changed, data, ranks.rank, ranks.world_size)
                if ranks.is_first:
                    torch.save(result, out / f"{ranks.world_size}-{stage}-{micro_batches}.pt")
    leave()


main()
