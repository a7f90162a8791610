"""Run by two processes: a forward and backward pass on their slices of a batch for each recipe of a folder.

Saves the loss and the averaged gradients beside each recipe.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from bali_ds.config import Recipe
from tests.leaving import leave
from tests.model.gradients import loss_and_gradients


def main() -> None:
    dist.init_process_group("gloo")
    for path in sorted(Path(sys.argv[1]).glob("*.json")):
        recipe = Recipe.model_validate_json(path.read_text())
        loss, gradients = loss_and_gradients(recipe, dist.get_rank(), dist.get_world_size())
        for gradient in gradients.values():
            dist.all_reduce(gradient)
            gradient /= dist.get_world_size()
        if dist.get_rank() == 0:
            torch.save((loss, gradients), path.with_suffix(".pt"))
    dist.destroy_process_group()
    leave()


main()
