"""One pass over the first global batch of the sample."""

import torch

from bali_ds.config import Recipe
from bali_ds.data.loader import Loader
from bali_ds.model.build_model import build_aligner
from bali_ds.objectives.registry import stream_settings
from bali_ds.planning.run_data import RunData


def loss_and_gradients(recipe: Recipe, rank: int, world_size: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    data = RunData.open(recipe)
    aligner = build_aligner(recipe, 2 * data.graph.num_relations)
    loader = Loader(
        data.shards, data.graph, stream_settings(recipe),
        global_batch=recipe.batch.passages, rank=rank, world_size=world_size,
    )  # fmt: skip
    loss, _ = aligner(next(loader).micro_batches)
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in aligner.named_parameters()}
