"""The aligner: text encoder and graph encoder under the objectives of a recipe; its forward pass is one step's loss."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from bali_ds.config import ObjectiveConfig
from bali_ds.data.batch import Batch
from bali_ds.losses.masked_language_model import mean_over_ranks
from bali_ds.model.graph_encoders import GraphEncoder, LinearizedGraph
from bali_ds.model.name_table import NameTable
from bali_ds.model.pooling import MentionPooling
from bali_ds.model.text_encoder import TextEncoder
from bali_ds.objectives.objective import EncodedBatch, EncodedViews, Objective, Sum, Sums, concatenated

# CLIP's bound on the learned logit scale (Radford et al., 2021, section 2.5).
LARGEST_LOGIT_SCALE = 100.0


class Aligner(nn.Module):
    """Language model and graph encoder under BALI's joint objective (Sakhovskiy and Tutubalina, SIGIR 2025).

    Called with the micro-batches of one rank, it returns the loss of the whole step over all ranks. Every module is
    called the same number of times on every rank, whatever the batches hold. Modules that no objective needs are frozen
    and not called in training; evaluation always computes both views.
    """

    def __init__(
        self,
        text: TextEncoder,
        graph: GraphEncoder | LinearizedGraph,
        objective: ObjectiveConfig,
        *,
        pooling: str = "mean",
        names: str = "gradient",
        table: NameTable | None = None,
        objectives: Sequence[Objective] = (),
    ) -> None:
        """Assemble the model.

        Args:
            text: encodes passages and names.
            graph: computes graph views.
            objective: weights and settings.
            pooling: see `MentionPooling`.
            names: "gradient", "no_gradient", "cached" or "learned".
            table: the vectors of all names, where they are cached.
            objectives: the terms of the loss, with their modules; without any the model only encodes.
        """
        super().__init__()
        self.text = text
        self.graph = graph
        self.objective = objective
        self.names = names
        self.pooling = MentionPooling(pooling, text.width)
        self.table = table
        self.terms = {each.name: each for each in objectives}
        self.objectives = nn.ModuleDict(
            {name: each.module for name, each in self.terms.items() if each.module is not None}
        )
        self.weights = {name: weight for each in objectives for name, weight in each.weights.items()}
        # The offset starts at 0, where half precision is finest; the constant part stays a Python float.
        learned = objective.contrastive.learn_temperature and objective.contrastive.weight
        self.log_scale_offset = nn.Parameter(torch.zeros(1)) if learned else None
        biased = objective.contrastive.kind == "sigmoid" and objective.contrastive.weight
        self.logit_bias_offset = nn.Parameter(torch.zeros(1)) if biased else None
        if not objective.needs_graph:
            self.graph.requires_grad_(False)
        if not objective.needs("text_views"):
            self.pooling.requires_grad_(False)
        if self.text.head is not None and not objective.needs("head"):
            shared = set(self.text.encoder.parameters())
            for parameter in self.text.head.parameters():
                parameter.requires_grad_(parameter in shared and parameter.requires_grad)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.parameters()).device

    @property
    def logit_scale(self) -> torch.Tensor:
        """Float32 [1], the inverse temperature."""
        scale = 1.0 / self.objective.contrastive.temperature
        if self.log_scale_offset is None:
            return torch.full((1,), scale, device=self.device)
        offset = self.log_scale_offset.float().clamp(max=math.log(LARGEST_LOGIT_SCALE / scale))
        return scale * offset.exp()

    @property
    def logit_bias(self) -> torch.Tensor:
        """Float32 [1], the bias of similarities in the sigmoid loss; other kinds do not read it."""
        bias = self.objective.contrastive.logit_bias
        if self.logit_bias_offset is None:
            return torch.full((1,), bias, device=self.device)
        return bias + self.logit_bias_offset.float()

    def forward(self, micro_batches: Sequence[Batch]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss of the step, and detached: its terms and the views of this rank.

        With several micro-batches only one's activations are in memory at a time: each is recomputed in the backward
        pass, with the same dropout, while the contrastive loss sees the views of all.
        """
        if self.table is not None:
            self.table.keep_fresh(self.text)
        recompute = len(micro_batches) > 1 and torch.is_grad_enabled()
        encoded = [
            checkpoint(self.encode, micro_batch, use_reentrant=False) if recompute else self.encode(micro_batch)
            for micro_batch in micro_batches
        ]
        losses = {name: _mean([views.sums[name] for views in encoded]) for name in encoded[0].sums}
        for term in self._computed():
            value = term.step_loss(encoded, self.logit_scale, self.logit_bias)
            if value is not None:
                losses[term.name] = value
        zero = torch.zeros((), device=self.device)
        weighted = [self.weights[name] * value for name, value in losses.items() if self.weights[name]]
        loss = torch.stack(weighted).sum() if weighted else zero
        parts = {"loss": loss, "contrastive": zero, "masked_language_model": zero, **losses}
        if self.training:
            for term in self.terms.values():
                parts |= term.metrics(encoded, self.logit_scale)
        parts |= {
            "text_views": concatenated(encoded, "text"),
            "graph_views": concatenated(encoded, "paired_graph"),
            "concept_ids": concatenated(encoded, "text_concept_ids"),
        }
        return loss, {name: value.detach() for name, value in parts.items()}

    def encode(self, batch: Batch) -> EncodedViews:
        """Return both views of every concept of one micro-batch, and its contributions to all other losses."""
        computed, sums = self._computed(), Sums()
        encoded = self._read(batch)
        text = self.pooling(encoded.hidden[batch.mention_tokens], batch.mention_views, int(batch.text_views.shape[0]))
        for term in computed:
            sums |= term.passage_sums(self.text, encoded.hidden, batch)
        graph = text[:0]
        if self.objective.needs_graph or not self.training:
            self._encode_graph(encoded)
            for term in computed:
                sums |= term.graph_sums(encoded)
            graph = self._graph_views(encoded)
        kept = {term.name: vectors for term in computed if (vectors := term.keep(encoded)) is not None}
        return EncodedViews(text, graph, batch.text_views, batch.concept_ids, sums, kept)

    def encode_for_generation(self, batch: Batch) -> EncodedBatch:
        """Return a micro-batch with the states of its passages and its nodes, for an objective that generates."""
        encoded = self._read(batch)
        self._encode_graph(encoded)
        return encoded

    def _computed(self) -> list[Objective]:
        """Return the objectives whose losses are computed now."""
        return [term for term in self.terms.values() if self.training or term.in_evaluation]

    def _read(self, batch: Batch) -> EncodedBatch:
        """Return a micro-batch with what the text encoder makes of it; it reads everything at once if it can."""
        further = {kind: pack for kind in ("names", "neighborhoods") if len((pack := getattr(batch, kind)).input_ids)}
        if self.names == "gradient":
            hidden, *others = self.text.hidden_states((batch.passages, *further.values()))
        else:
            (hidden,) = self.text.hidden_states((batch.passages,))
            with torch.no_grad():
                others = list(self.text.hidden_states([*further.values()])) if further else []
        states = dict(zip(further, others, strict=True))
        names = hidden[:0].float() if self.table is None else self.table.vectors
        if "names" in states:
            names = self.text.pool(states["names"], batch.names)
        return EncodedBatch(self.text, batch, hidden, names, neighborhoods=states.get("neighborhoods", hidden[:0]))

    def _encode_graph(self, encoded: EncodedBatch) -> None:
        """Add the nodes' vectors, or the states of linearized neighborhoods."""
        batch, graph = encoded.batch, self.graph
        if not isinstance(graph, GraphEncoder):
            return

        def encode_nodes(features: torch.Tensor, edge_index: torch.Tensor, relations: torch.Tensor) -> torch.Tensor:
            nodes: torch.Tensor = graph(features.to(next(graph.parameters()).dtype), edge_index, relations)
            return nodes

        def encode(features: torch.Tensor) -> torch.Tensor:
            return encode_nodes(features, batch.edge_index, batch.edge_relations)

        encoded.features = self._features(encoded.names, batch)
        encoded.encode_graph, encoded.encode_nodes = encode, encode_nodes
        encoded.nodes = encode(encoded.features)

    def _features(self, names: torch.Tensor, batch: Batch) -> torch.Tensor:
        if self.names == "learned":
            features: torch.Tensor = self.graph.get_submodule("concepts")(batch.node_names)
            return features
        return names[batch.node_names].to(next(self.graph.parameters()).dtype)

    def _graph_views(self, encoded: EncodedBatch) -> torch.Tensor:
        """Return the vector of each concept's node, or the mean over the tokens of its linearized neighborhood."""
        batch = encoded.batch
        if encoded.nodes is not None:
            return encoded.nodes[batch.targets].float()
        means = self.text.pool(encoded.neighborhoods, batch.neighborhoods)
        return means[batch.neighborhood_rows]


def _mean(sums: Sequence[Sum]) -> torch.Tensor:
    totals, counts = zip(*sums, strict=True)
    return mean_over_ranks(torch.stack(totals).sum(), sum(counts))
