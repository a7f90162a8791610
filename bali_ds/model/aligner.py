"""The whole model of a step: two views of every concept, and the losses over them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from bali_ds.config import Objective, Recipe
from bali_ds.model.graph import GraphEncoder, LinearisedGraph, build_graph_encoder
from bali_ds.model.pooling import segment_mean
from bali_ds.model.text import TextEncoder, load_text_encoder
from bali_ds.objective.contrastive import contrastive_loss
from bali_ds.objective.masked_language_model import mean_over_ranks, summed_cross_entropy
from bali_ds.stream.batch import Batch

# CLIP's bound on the learnt logit scale (Radford et al., 2021, section 2.5).
LARGEST_LOGIT_SCALE = 100.0

Sums = dict[str, tuple[torch.Tensor, int]]
"""Of each objective that is a mean: the float32 sum of its terms in one micro-batch, and how many terms it has."""


@dataclass(frozen=True)
class Views:
    """What one micro-batch contributes to the losses; V views.

    Attributes:
        text: float32 [V, d], mean over all tokens of the concept's mentions in its masked passage.
        graph: float32 [V, d], what the graph says of the concept; [0, d] where nothing asks for it.
        concept_ids: int64 [V].
        sums: of the objectives that are means over tokens, facts or nodes.
    """

    text: torch.Tensor
    graph: torch.Tensor
    concept_ids: torch.Tensor
    sums: Sums = field(default_factory=dict)


class Aligner(nn.Module):
    """Language model and graph encoder under BALI's joint objective (Sakhovskiy and Tutubalina, SIGIR 2025).

    Called with the micro-batches of one rank, it returns the loss of the whole step over all ranks. Every module is
    called the same number of times on every rank, whatever the batches hold. What no objective needs is frozen and
    not called in training; evaluation always sees both views.
    """

    def __init__(self, text: TextEncoder, graph: GraphEncoder | LinearisedGraph, objective: Objective) -> None:
        super().__init__()
        self.text = text
        self.graph = graph
        self.objective = objective
        # The offset starts at 0, where half precision is finest; the constant part stays a Python float.
        learnt = objective.contrastive.learn_temperature and objective.contrastive.weight
        self.log_scale_offset = nn.Parameter(torch.zeros(1)) if learnt else None
        if not objective.needs_graph:
            self.graph.requires_grad_(False)
        if not objective.needs_head:
            shared = set(self.text.encoder.parameters())
            for parameter in self.text.head.parameters():
                parameter.requires_grad_(parameter in shared and parameter.requires_grad)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.parameters()).device

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
        encoded = [
            checkpoint(self.encode, chunk, use_reentrant=False) if replay else self.encode(chunk) for chunk in chunks
        ]
        losses = {name: _mean([views.sums[name] for views in encoded]) for name in encoded[0].sums}
        if self.objective.contrastive.weight:
            losses["contrastive"] = self._contrastive(encoded)
        loss = torch.stack([self.objective.weight(name) * value for name, value in losses.items()]).sum()
        nothing = loss.new_zeros(())
        parts = {
            "loss": loss,
            "contrastive": nothing,
            "masked_language_model": nothing,
            **losses,
            "text_views": torch.cat([views.text for views in encoded]),
            "graph_views": torch.cat([views.graph for views in encoded]),
            "concept_ids": torch.cat([views.concept_ids for views in encoded]),
        }
        return loss, {name: value.detach() for name, value in parts.items()}

    def encode(self, batch: Batch) -> Views:
        """Return both views of every concept of one micro-batch, and what else its tokens tell."""
        sums: Sums = {}
        hidden = self.text.flat_hidden_states(batch.passages)
        text = segment_mean(hidden[batch.mention_tokens], batch.mention_views, batch.num_views)
        if self.objective.masked_language_model.weight:
            sums["masked_language_model"] = self._predicted(hidden, batch.labelled_tokens, batch.labels)
        graph = text[:0]
        if self.objective.needs_graph or not self.training:
            graph = self._star_views(batch) if isinstance(self.graph, GraphEncoder) else self._read_views(batch, sums)
        return Views(text, graph, batch.concept_ids, sums)

    def _star_views(self, batch: Batch) -> torch.Tensor:
        assert isinstance(self.graph, GraphEncoder)
        names = self.text.name_vectors(batch.names)
        nodes = names[batch.node_names].to(next(self.graph.parameters()).dtype)
        nodes = self.graph(nodes, batch.edge_index, batch.edge_relations)
        return nodes[batch.targets].float()

    def _read_views(self, batch: Batch, sums: Sums) -> torch.Tensor:
        """The first token's state of each linearised neighbourhood, as in BALI."""
        states = [self.text.hidden_states(block) for block in batch.neighbourhoods]
        if self.objective.graph_language_model.weight:
            hidden = torch.cat([each.flatten(0, 1) for each in states])
            sums["graph_language_model"] = self._predicted(hidden, batch.graph_labelled_tokens, batch.graph_labels)
        return torch.cat([each[:, 0] for each in states])[batch.neighbourhood_rows].float()

    def _predicted(self, hidden: torch.Tensor, tokens: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, int]:
        return summed_cross_entropy(self.text.head(hidden[tokens]), labels), int(labels.shape[0])

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


def _mean(sums: Sequence[tuple[torch.Tensor, int]]) -> torch.Tensor:
    totals, counts = zip(*sums, strict=True)
    return mean_over_ranks(torch.stack(totals).sum(), sum(counts))


def build_aligner(recipe: Recipe, num_relations: int) -> Aligner:
    """Return the model that a recipe describes, its fresh parts drawn from the recipe's seed.

    Args:
        recipe: the run.
        num_relations: relation ids of the graph, both directions together.
    """
    text = load_text_encoder(recipe.text_encoder.path, seed=recipe.seed, dropout=recipe.text_encoder.dropout)
    torch.manual_seed(recipe.seed)
    return Aligner(text, build_graph_encoder(recipe.graph_encoder, text.width, num_relations), recipe.objective)
