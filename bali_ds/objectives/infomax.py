"""Deep graph infomax over the nodes of ego graphs."""

from typing import TYPE_CHECKING

from bali_ds.objectives.objective import EncodedBatch, LanguageModel, Objective, Sums

if TYPE_CHECKING:
    from torch import nn


class GraphInfomaxObjective(Objective):
    """Node vectors of the graph against those of the same graph with shuffled features; it adds nothing to batches."""

    name = "graph_infomax"

    def build(self, text: LanguageModel, *, num_relations: int, graph_tokens: int) -> "nn.Module":  # noqa: ARG002
        """Return the discriminator's matrix."""
        from bali_ds.losses.graph_infomax import GraphInfomax

        return GraphInfomax(text.width)

    def graph_sums(self, encoded: EncodedBatch) -> Sums:
        """Return the sum over all nodes; the graph is encoded a second time."""
        import torch

        features = encoded.features
        assert self.module is not None
        assert features is not None
        assert encoded.encode_graph is not None
        shuffled = features[torch.randperm(len(features), device=features.device)]
        return {self.name: self.module(encoded.nodes, encoded.encode_graph(shuffled))}
