"""The whole model of a step: two views of every concept, and the losses over them."""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint

from bali_ds.config import ObjectiveConfig
from bali_ds.data.batch import Batch, TokenBlock
from bali_ds.distributed import Ranks
from bali_ds.losses.contrastive import contrastive_loss
from bali_ds.losses.masked_language_model import mean_over_ranks, summed_cross_entropy
from bali_ds.losses.mutual_information import info_nce_bound
from bali_ds.model.dual_decoder import FACTS, PASSAGES, DualDecoder
from bali_ds.model.encoded_views import EncodedViews, Sums
from bali_ds.model.graph_encoders import GraphEncoder, LinearizedGraph
from bali_ds.model.name_table import NameTable
from bali_ds.model.pooling import MentionPooling, mean_of_inner_tokens
from bali_ds.model.text_encoder import TextEncoder

# CLIP's bound on the learned logit scale (Radford et al., 2021, section 2.5).
LARGEST_LOGIT_SCALE = 100.0
# The scale of negatives in the loss of SapBERT (Liu et al., NAACL 2021), beta of Wang et al. (CVPR 2019).
SYNONYM_SCALE = 50.0


class Aligner(nn.Module):
    """Language model and graph encoder under BALI's joint objective (Sakhovskiy and Tutubalina, SIGIR 2025).

    Called with the micro-batches of one rank, it returns the loss of the whole step over all ranks. Every module is
    called the same number of times on every rank, whatever the batches hold. What no objective needs is frozen and
    not called in training; evaluation always sees both views.
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
        objectives: Mapping[str, nn.Module] | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            text: encodes passages and names.
            graph: what graph views are made by.
            objective: kinds and weights.
            pooling: see `MentionPooling`.
            names: "gradient", "no_gradient", "cached" or "learned".
            table: the vectors of all names, where they are cached.
            objectives: those with weights of their own, by their names in the recipe: "link_prediction",
                "graph_infomax", "dual".
        """
        super().__init__()
        self.text = text
        self.graph = graph
        self.objective = objective
        self.names = names
        self.pooling = MentionPooling(pooling, text.width)
        self.table = table
        self.objectives = nn.ModuleDict(objectives or {})
        self.weights = {name: objective.weight(name) for name in type(objective).model_fields}
        if "dual" in self.objectives:
            self.weights |= self.objectives["dual"].weights  # type: ignore[arg-type]
        # The offset starts at 0, where half precision is finest; the constant part stays a Python float.
        learned = objective.contrastive.learn_temperature and objective.contrastive.weight
        self.log_scale_offset = nn.Parameter(torch.zeros(1)) if learned else None
        biased = objective.contrastive.kind == "sigmoid" and objective.contrastive.weight
        self.logit_bias_offset = nn.Parameter(torch.zeros(1)) if biased else None
        if not objective.needs_graph:
            self.graph.requires_grad_(False)
        if not objective.contrastive.weight:
            self.pooling.requires_grad_(False)
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

    @property
    def logit_bias(self) -> torch.Tensor:
        """Float32 [1], the bias of similarities in the sigmoid loss; other kinds do not read it."""
        bias = self.objective.contrastive.logit_bias
        if self.logit_bias_offset is None:
            return torch.tensor([bias], device=self.device)
        return bias + self.logit_bias_offset.float()

    def forward(self, micro_batches: Sequence[Batch]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss of the step, and detached: its parts and the views of this rank.

        With several micro-batches only one's activations live at a time: each is computed again in the backward
        pass, with the same dropout, while the contrastive loss sees the views of all.
        """
        if self.table is not None:
            self.table.keep_fresh(self.text)
        replay = len(micro_batches) > 1 and torch.is_grad_enabled()
        encoded = [
            checkpoint(self.encode, micro_batch, use_reentrant=False) if replay else self.encode(micro_batch)
            for micro_batch in micro_batches
        ]
        losses = {name: _mean([views.sums[name] for views in encoded]) for name in encoded[0].sums}
        if self.objective.contrastive.weight:
            losses["contrastive"] = self._contrastive(encoded)
        if self.objective.synonym_alignment.weight and self.training:
            losses["synonym_alignment"] = self._synonyms(encoded)
        loss = torch.stack([self.weights[name] * value for name, value in losses.items() if self.weights[name]]).sum()
        nothing = loss.new_zeros(())
        parts = {
            "loss": loss,
            "contrastive": nothing,
            "masked_language_model": nothing,
            **losses,
            **self._information(encoded),
            "text_views": torch.cat([views.text for views in encoded]),
            "graph_views": torch.cat([views.paired_graph for views in encoded]),
            "concept_ids": torch.cat([views.text_ids for views in encoded]),
        }
        return loss, {name: value.detach() for name, value in parts.items()}

    def encode(self, batch: Batch) -> EncodedViews:
        """Return both views of every concept of one micro-batch, and what else its tokens tell."""
        sums: Sums = {}
        hidden = self.text.flat_hidden_states(batch.passages)
        text = self.pooling(hidden[batch.mention_tokens], batch.mention_views, int(batch.text_views.shape[0]))
        if self.objective.masked_language_model.weight:
            sums["masked_language_model"] = self._predicted(hidden, batch.labeled_tokens, batch.labels)
        names = self._name_vectors(batch)
        graph = text[:0]
        if self.objective.needs_graph or not self.training:
            if isinstance(self.graph, GraphEncoder):
                graph = self._star_views(names, hidden, batch, sums)
            else:
                graph = self._read_views(batch, sums)
        # taken also where there are none: gradients must reach the same modules on every rank
        synonyms = names[batch.synonyms]
        return EncodedViews(text, graph, batch.text_views, batch.concept_ids, synonyms, batch.synonym_ids, sums)

    @torch.no_grad()
    def written(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the decoder writes of each passage: its facts from its text, and its text from the graph.

        Both int64 [B, L], as long as the longest true one of the batch, the most likely token each time. The modules
        that are called depend on the batch's shape alone.
        """
        dual, (passages,), (facts,) = self.objectives["dual"], batch.originals, batch.triples
        assert isinstance(dual, DualDecoder)
        start = int(passages.input_ids[0, 0])
        hidden = self.text.flat_hidden_states(batch.passages)
        features = self._features(self._name_vectors(batch), batch)
        nodes = self.graph(features, batch.edge_index, batch.edge_relations)
        text, graph = dual.seen_text(hidden, batch), dual.seen_graph(nodes, batch)
        return (
            dual.generate(self.text, *text, FACTS, start, facts.input_ids.shape[1]),
            dual.generate(self.text, *graph, PASSAGES, start, passages.input_ids.shape[1]),
        )

    def _name_vectors(self, batch: Batch) -> torch.Tensor:
        if self.table is not None:
            return self.table.vectors
        if not batch.names:
            return torch.zeros(0, self.text.width, device=self.device)
        with nullcontext() if self.names == "gradient" else torch.no_grad():
            return self.text.name_vectors(batch.names)

    def _star_views(self, names: torch.Tensor, hidden: torch.Tensor, batch: Batch, sums: Sums) -> torch.Tensor:
        features = self._features(names, batch)
        nodes = self.graph(features, batch.edge_index, batch.edge_relations)
        if self.training:
            if "link_prediction" in self.objectives:
                sums["link_prediction"] = self.objectives["link_prediction"](nodes, batch.held_out)
            if "graph_infomax" in self.objectives:
                shuffled = features[torch.randperm(len(features), device=features.device)]
                corrupted = self.graph(shuffled, batch.edge_index, batch.edge_relations)
                sums["graph_infomax"] = self.objectives["graph_infomax"](nodes, corrupted)
            if "dual" in self.objectives:
                sums |= self.objectives["dual"](self.text, hidden, nodes, batch)
        return nodes[batch.targets].float()

    def _features(self, names: torch.Tensor, batch: Batch) -> torch.Tensor:
        if self.names == "learned":
            features: torch.Tensor = self.graph.get_submodule("concepts")(batch.node_names)
            return features
        return names[batch.node_names].to(next(self.graph.parameters()).dtype)

    def _read_views(self, batch: Batch, sums: Sums) -> torch.Tensor:
        """The mean over the tokens of each linearized neighborhood, as of a name."""
        states = [self._read(block) for block in batch.neighborhoods]
        if self.objective.graph_language_model.weight:
            hidden = torch.cat([each.flatten(0, 1) for each in states])
            sums["graph_language_model"] = self._predicted(hidden, batch.graph_labeled_tokens, batch.graph_labels)
        blocks = zip(states, batch.neighborhoods, strict=True)
        means = torch.cat([mean_of_inner_tokens(each, block.lengths) for each, block in blocks])
        return means[batch.neighborhood_rows]

    def _read(self, block: TokenBlock) -> torch.Tensor:
        with nullcontext() if self.names == "gradient" else torch.no_grad():
            return self.text.hidden_states(block)

    def _predicted(self, hidden: torch.Tensor, tokens: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, int]:
        return summed_cross_entropy(self.text.head(hidden[tokens]), labels), int(labels.shape[0])

    def _contrastive(self, encoded: Sequence[EncodedViews]) -> torch.Tensor:
        loss = contrastive_loss(
            torch.cat([views.text for views in encoded]),
            torch.cat([views.graph for views in encoded]),
            self.logit_scale,
            query_concept_ids=torch.cat([views.text_ids for views in encoded]),
            key_concept_ids=torch.cat([views.concept_ids for views in encoded]),
            kind=self.objective.contrastive.kind,
            logit_bias=self.logit_bias,
            group=self._negatives,
            communication_dtype=torch.bfloat16 if self.objective.contrastive.communication_dtype == "bf16" else None,
        )
        return loss if self._negatives is None else mean_over_ranks(loss, 1)

    @cached_property
    def _negatives(self) -> dist.ProcessGroup | None:
        """The ranks whose views are contrasted: all, or this one alone."""
        if self.objective.contrastive.negatives == "all" or not dist.is_initialized():
            return None
        return dist.new_subgroups(1)[0]

    def _synonyms(self, encoded: Sequence[EncodedViews]) -> torch.Tensor:
        """SapBERT's loss (Liu et al., NAACL 2021), or NT-Xent, over pairs of names."""
        kind = self.objective.synonym_alignment.kind
        ids = torch.cat([views.synonym_ids for views in encoded])
        first, second = torch.cat([views.synonyms for views in encoded], dim=1)
        scale = SYNONYM_SCALE if kind == "multi_similarity" else 1.0 / self.objective.contrastive.temperature
        return contrastive_loss(first, second, scale, query_concept_ids=ids, key_concept_ids=ids, kind=kind)

    def _information(self, encoded: Sequence[EncodedViews]) -> dict[str, torch.Tensor]:
        """What the two views are known to tell of each other, in nats, where the decoder's estimates are logged too."""
        if "dual" not in self.objectives or not self.training:
            return {}
        bound, cap, count = Ranks.of(None).all_reduce_sum(
            info_nce_bound(
                torch.cat([views.text for views in encoded]),
                torch.cat([views.graph for views in encoded]),
                self.logit_scale,
                torch.cat([views.text_ids for views in encoded]),
                torch.cat([views.concept_ids for views in encoded]),
            )
        )
        return {"information_contrastive": bound / count.clamp(min=1), "information_cap": cap / count.clamp(min=1)}


def _mean(sums: Sequence[tuple[torch.Tensor, int]]) -> torch.Tensor:
    totals, counts = zip(*sums, strict=True)
    return mean_over_ranks(torch.stack(totals).sum(), sum(counts))
