"""Run by one or two processes: takes steps with every ZeRO stage and number of micro-batches, saves the weights."""

import sys
from contextlib import ExitStack
from pathlib import Path

import deepspeed
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bali_ds.checkpoint.manager import RunProgress
from bali_ds.config import Recipe
from bali_ds.data.sampler import Position
from bali_ds.distributed import Ranks
from bali_ds.planning.run_data import RunData
from bali_ds.training.process_group import joined_ranks
from bali_ds.training.step import StepCallback, train_step
from tests.engines import at_stage, engine_of
from tests.leaving import leave
from tests.training.cases import MICRO_BATCHES, STAGES


class Reductions(TorchDispatchMode, StepCallback):
    """Counts the elements that collectives reduce over ranks in the backward pass and the update of a step."""

    def __init__(self, during_step: ExitStack) -> None:
        super().__init__()
        self.elements = 0
        self._during_step = during_step

    def before_backward(self, loss: torch.Tensor) -> torch.Tensor:
        self._during_step.enter_context(self)
        return loss

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d" and "reduce" in function._schema.name:
            reduces_into = 1 if "reduce_scatter" in function._schema.name else 0
            tensors = args[reduces_into]
            self.elements += sum(each.numel() for each in (tensors if isinstance(tensors, list) else [tensors]))
        return function(*args, **(kwargs or {}))


def weights_after(
    recipe: Recipe, data: RunData, ranks: Ranks
) -> tuple[dict[str, torch.Tensor], list[float], list[int]]:
    """The whole weights after the recipe's steps, the loss of each, and how many elements each reduced over ranks."""
    engine = engine_of(recipe, data, ranks.world_size)
    progress, losses, reduced = RunProgress(0, Position()), [], []
    for _, batch in zip(range(recipe.steps), data.loader(recipe, ranks.rank, ranks.world_size), strict=False):
        with ExitStack() as during_step:
            reductions = Reductions(during_step)
            result = train_step(engine, batch, progress, callbacks=[reductions])
        progress = result.progress
        losses.append(float(result.outputs["loss"]))
        reduced.append(reductions.elements)
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
                batch = recipe.batch.model_copy(update={"micro_batches": micro_batches})
                result = weights_after(at_stage(recipe, stage, batch=batch), data, ranks)
                if ranks.is_first:
                    torch.save(result, out / f"{ranks.world_size}-{stage}-{micro_batches}.pt")
    leave()


main()
