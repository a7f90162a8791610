"""Run by two processes: one forward and backward pass on their shares of a batch; saves the averaged gradients."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from bali_ds.config import Recipe
from tests.leaving import leave
from tests.model.gradients import loss_and_gradients


def main() -> None:
    dist.init_process_group("gloo")
    recipe = Recipe.model_validate_json(Path(sys.argv[1]).read_text())
    loss, gradients = loss_and_gradients(recipe, dist.get_rank(), dist.get_world_size())
    for gradient in gradients.values():
        dist.all_reduce(gradient)
        gradient /= dist.get_world_size()
    if dist.get_rank() == 0:
        torch.save((loss, gradients), sys.argv[2])
    dist.destroy_process_group()
    leave()


main()
