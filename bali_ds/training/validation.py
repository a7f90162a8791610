"""Text-graph retrieval on held-out passages, by all ranks together."""

import deepspeed
import numpy as np
import torch

from bali_ds.evaluation.retrieval import evaluate_retrieval
from bali_ds.stream.batch import Batch
from bali_ds.training.cluster import Cluster
from bali_ds.training.stopping import StopRequest


def validate(
    engine: deepspeed.DeepSpeedEngine, batches: list[Batch], cluster: Cluster, stop: StopRequest
) -> dict[str, float]:
    """Return R@1, MRR, alignment and uniformity over the views of all batches, the same on every rank.

    Nothing is returned where a reason to stop comes up meanwhile.

    Batches are shared out over the ranks. Every rank calls the model equally often: where the batches do not
    divide, the last one is computed again and its repetition left out.
    """
    turns = -(-len(batches) // cluster.world_size)
    own: dict[int, tuple[np.ndarray, ...]] = {}
    engine.eval()
    with torch.no_grad():
        for turn in range(turns):
            if stop.agreed():
                engine.train()
                return {}
            index = min(turn * cluster.world_size + cluster.rank, len(batches) - 1)
            _, parts = engine((batches[index].to(cluster.device),))
            own[index] = tuple(parts[name].cpu().numpy() for name in ("text_views", "graph_views", "concept_ids"))
    engine.train()
    views: dict[int, tuple[np.ndarray, ...]] = {}
    for shares in cluster.collect(own):
        views.update(shares)
    text, graph, concepts = (np.concatenate([views[i][column] for i in sorted(views)]) for column in range(3))
    measured = evaluate_retrieval(text, graph, concepts)
    return {
        f"validation/{direction}_{measure}": measured[direction][measure]["value"]
        for direction in ("text_to_graph", "graph_to_text")
        for measure in ("r@1", "mrr")
    } | {"validation/alignment": measured["alignment"], "validation/uniformity": measured["uniformity"]["text"]}
