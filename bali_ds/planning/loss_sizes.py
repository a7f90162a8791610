"""Sizes of the contrastive loss that a recipe asks for, for predictions of its time and memory."""

from bali_ds.config import Recipe
from bali_ds.losses.contrastive.communication_cost import LossSizes


def loss_sizes(recipe: Recipe, text_views: int, width: int, *, ranks: int, node: int, on_gpu: bool) -> LossSizes | None:
    """Return the sizes of a step's contrastive loss, None if the recipe has none.

    Args:
        recipe: the run.
        text_views: text views of a rank in a step.
        width: features of a view.
        ranks: number of ranks.
        node: ranks of a host.
        on_gpu: whether ranks have GPUs.
    """
    settings = recipe.objective.contrastive
    if not settings.weight:
        return None
    graph_views = text_views * (1 + len(settings.further_views) + 2 * settings.drawn_concepts)
    together = text_views + graph_views
    rows, columns = (together, together) if settings.joint else (text_views, graph_views)
    compared = {"all": ranks, "node": min(node, ranks), "rank": 1}[settings.negatives]
    in_bf16 = settings.in_bf16(on_gpu=on_gpu, model_in_bf16=recipe.precision == "bf16")
    itemsize = 2 if in_bf16 else 4
    passes = 3 if on_gpu else 2  # in which the kernels of GPUs, or tiles on CPUs, read the features
    return LossSizes(compared, min(node, compared), rows, columns, width, itemsize, settings.joint, passes)
