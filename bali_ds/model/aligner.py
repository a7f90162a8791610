"""The whole model of a step: two views of every concept, and the losses over them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from bali_ds.config import Objective, Recipe
from bali_ds.model.graph import GraphEncoder, build_graph_encoder
from bali_ds.model.pooling import segment_mean
from bali_ds.model.text import TextEncoder, load_text_encoder
from bali_ds.objective.contrastive import contrastive_loss
from bali_ds.objective.masked_language_model import mean_over_ranks, summed_cross_entropy
from bali_ds.stream.batch import Batch

# CLIP's bound on the learnt logit scale (Radford et al., 2021, section 2.5).
LARGEST_LOGIT_SCALE = 100.0


@dataclass(frozen=True)
class Views:
    """What one micro-batch contributes to the losses; V views.

    Attributes:
        text: float32 [V, d], mean over all tokens of the concept's mentions in its masked passage.
        graph: float32 [V, d], the concept's node after the graph encoder.
        concept_ids: int64 [V].
        cross_entropy: float32 scalar, summed over the labelled tokens.
    """

    text: torch.Tensor
    graph: torch.Tensor
    concept_ids: torch.Tensor
    cross_entropy: torch.Tensor


class Aligner(nn.Module):
    """Language model and graph encoder under BALI's joint objective (Sakhovskiy and Tutubalina, SIGIR 2025).

    Called with the micro-batches of one rank, it returns the loss of the whole step over all ranks. Every module is
    called the same number of times on every rank, whatever the batches hold.
    """

    def __init__(self, text: TextEncoder, graph: GraphEncoder, objective: Objective) -> None:
        super().__init__()
        self.text = text
        self.graph = graph
        self.objective = objective
        # The offset starts at 0, where half precision is finest; the constant part stays a Python float.
        learnt = objective.contrastive.learn_temperature
        self.log_scale_offset = nn.Parameter(torch.zeros(1)) if learnt else None

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.graph.parameters()).device

    @property
    def logit_scale(self) -> torch.Tensor:
        """Float32 [1], the inverse temperature."""
        scale = 1.0 / self.objective.contrastive.temperature
        if self.log_scale_offset is None:
            return torch.tensor([scale], device=self.device)
        offset = self.log_scale_offset.float().clamp(max=math.log(LARGEST_LOGIT_SCALE / scale))
        return scale * offset.exp()

    def forward(self, chunks: Sequence[Batch]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss of the step, and detached: its parts and the views of this rank.

        With several micro-batches only one's activations live at a time: each is computed again in the backward
        pass, with the same dropout, while the contrastive loss sees the views of all.
        """
        replay = len(chunks) > 1 and torch.is_grad_enabled()
        encoded = [Views(*(checkpoint(self._encode, chunk, use_reentrant=False) if replay else self._encode(chunk)))
                   for chunk in chunks]  # fmt: skip
        contrastive = self._contrastive(encoded)
        masked_language_model = mean_over_ranks(
            torch.stack([views.cross_entropy for views in encoded]).sum(),
            sum(int(chunk.labels.shape[0]) for chunk in chunks),
        )
        loss = (
            self.objective.contrastive.weight * contrastive
            + self.objective.masked_language_model.weight * masked_language_model
        )
        parts = {
            "loss": loss,
            "contrastive": contrastive,
            "masked_language_model": masked_language_model,
            "text_views": torch.cat([views.text for views in encoded]),
            "graph_views": torch.cat([views.graph for views in encoded]),
            "concept_ids": torch.cat([views.concept_ids for views in encoded]),
        }
        return loss, {name: value.detach() for name, value in parts.items()}

    def encode(self, batch: Batch) -> Views:
        """Return both views of every concept of one micro-batch."""
        return Views(*self._encode(batch))

    def _encode(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        hidden = self.text.flat_hidden_states(batch.passages)
        text_views = segment_mean(hidden[batch.mention_tokens], batch.mention_views, batch.num_views)
        names = self.text.name_vectors(batch.names)
        nodes = names[batch.node_names].to(next(self.graph.parameters()).dtype)
        nodes = self.graph(nodes, batch.edge_index, batch.edge_relations)
        logits = self.text.head(hidden[batch.labelled_tokens])
        cross_entropy = summed_cross_entropy(logits, batch.labels)
        return text_views, nodes[batch.targets].float(), batch.concept_ids, cross_entropy

    def _contrastive(self, encoded: Sequence[Views]) -> torch.Tensor:
        concept_ids = torch.cat([views.concept_ids for views in encoded])
        return contrastive_loss(
            torch.cat([views.text for views in encoded]),
            torch.cat([views.graph for views in encoded]),
            self.logit_scale,
            query_ids=concept_ids,
            key_ids=concept_ids,
            kind=self.objective.contrastive.kind,
        )


def build_aligner(recipe: Recipe, num_relations: int) -> Aligner:
    """Return the model that a recipe describes, its fresh parts drawn from the recipe's seed.

    Args:
        recipe: the run.
        num_relations: relation ids of the graph, both directions together.
    """
    text = load_text_encoder(recipe.text_encoder.path, seed=recipe.seed, dropout=recipe.text_encoder.dropout)
    torch.manual_seed(recipe.seed)
    graph = build_graph_encoder(recipe.graph_encoder, text.width, num_relations)
    return Aligner(text, graph, recipe.objective)
