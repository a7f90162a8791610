"""An objective: one term of the total loss with all that it asks of the data and of the model.

Modules of this package import torch inside functions alone (all but `dual_decoder`), since loader workers import them
for their batch parts and stay without torch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from bali_ds.data.batch import Batch
from bali_ds.data.batch_part import BatchPart

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bali_ds.config.objectives import ObjectiveConfig, ObjectiveSection

Sum = tuple["Tensor", int]
"""The float32 sum of an objective's terms in one micro-batch, and how many terms it has."""
Sums = dict[str, Sum]
"""The sums of objectives that are means over tokens, facts, nodes or passages of all ranks, by the loss's name."""
Vectors = tuple["Tensor", "Tensor"]
"""Vectors that an objective keeps of a micro-batch, float32 [..., d], and the concept ids that they are of."""


class LanguageModel(Protocol):
    """The text encoder as objectives see it: `bali_ds.model.text_encoder.TextEncoder`."""

    encoder: Any
    head: Any

    @property
    def width(self) -> int:
        """The hidden size d."""


@dataclass
class EncodedBatch:
    """One micro-batch on its way through the model; the graph's fields are there once it was encoded.

    Attributes:
        text: the text encoder.
        batch: the micro-batch.
        hidden: float [positions, d], states at the flat positions of the passages.
        names: float32 [rows, d], name vectors; [0, d] where there are none.
        features: float [N, d], of the nodes of ego graphs.
        nodes: float [N, d], their vectors.
        neighborhoods: float [positions, d], states at the flat positions of the linearized neighborhoods; [0, d]
            where there are none.
        encode_graph: returns the nodes' vectors for other features.
        encode_nodes: returns the vectors of nodes of other ego graphs from their features, edge index and relations.
    """

    text: LanguageModel
    batch: Batch
    hidden: "Tensor"
    names: "Tensor"
    neighborhoods: "Tensor"
    features: "Tensor | None" = None
    nodes: "Tensor | None" = None
    encode_graph: "Callable[[Tensor], Tensor] | None" = None
    encode_nodes: "Callable[[Tensor, Tensor, Tensor], Tensor] | None" = None


@dataclass(frozen=True)
class EncodedViews:
    """What one micro-batch contributes to the losses; V views, T text views.

    Attributes:
        text: float32 [T, d], the masked passage's vector of the concept at its mentions.
        graph: float32 [V, d], the graph's vector of the concept; [0, d] where no objective needs it.
        text_views: int64 [T], the view of each text view.
        concept_ids: int64 [V].
        sums: of the objectives that are means.
        kept: what other objectives keep, by name.
    """

    text: "Tensor"
    graph: "Tensor"
    text_views: "Tensor"
    concept_ids: "Tensor"
    sums: Sums
    kept: Mapping[str, Vectors] = field(default_factory=dict)

    @property
    def text_concept_ids(self) -> "Tensor":
        """Int64 [T], the concept of each text view."""
        return self.concept_ids[self.text_views]

    @property
    def paired_graph(self) -> "Tensor":
        """The graph view of each text view, float32 [T, d]; [0, d] where there are no graph views."""
        return self.graph[self.text_views] if len(self.graph) else self.graph


def concatenated(several: Sequence[EncodedViews], field_name: str) -> "Tensor":
    """Return one field of several micro-batches, concatenated."""
    import torch

    return torch.cat([getattr(views, field_name) for views in several])


class Objective:
    """One term of the total loss, or several under one name of the recipe; every hook may be left as it is.

    Hooks are called in this order on every rank for every micro-batch: `passage_sums`, `graph_sums`, `keep`; then once
    a step `step_loss` and `metrics`. Whatever a batch holds, an objective calls the same modules equally often.

    Args:
        objective: weights and settings of all objectives.

    Attributes:
        name: of the objective in the recipe, and of its loss.
        in_evaluation: whether the loss is computed outside of training, too.
        settings: its own section of the recipe.
        module: what it has of weights; None before `build` and where it has none.
    """

    name: ClassVar[str]
    in_evaluation: ClassVar[bool] = False
    settings: "ObjectiveSection"

    def __init__(self, objective: "ObjectiveConfig") -> None:
        self.objective = objective
        self.settings = objective.section(self.name)
        self.module: nn.Module | None = None

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each of its losses in the total loss; a loss of weight 0 is only logged."""
        return {self.name: self.settings.weight}

    def batch_part(self) -> BatchPart | None:
        """Return what the objective adds to every batch."""
        return None

    def build(self, text: LanguageModel, *, num_relations: int, graph_tokens: int) -> "nn.Module | None":
        """Return new weights of the objective's own, drawn from torch's default generator.

        Args:
            text: the text encoder.
            num_relations: relation ids of the graph, both directions together.
            graph_tokens: most tokens of facts as text.
        """
        del text, num_relations, graph_tokens
        return None

    def passage_sums(self, text: LanguageModel, hidden: "Tensor", batch: Batch) -> Sums:
        """Return losses of the passages' states alone, before names and graph are encoded."""
        del text, hidden, batch
        return {}

    def graph_sums(self, encoded: EncodedBatch) -> Sums:
        """Return losses that also need the encoded graph."""
        del encoded
        return {}

    def keep(self, encoded: EncodedBatch) -> Vectors | None:
        """Return vectors that `step_loss` compares over all micro-batches."""
        del encoded
        return None

    def step_loss(
        self, encoded: Sequence[EncodedViews], logit_scale: "Tensor", logit_bias: "Tensor"
    ) -> "Tensor | None":
        """Return the loss over all micro-batches of the step and all ranks.

        Args:
            encoded: the micro-batches of this rank.
            logit_scale: float32 [1], the inverse temperature.
            logit_bias: float32 [1], the bias of similarities in the sigmoid loss.
        """
        del encoded, logit_scale, logit_bias
        return None

    def metrics(self, encoded: Sequence[EncodedViews], logit_scale: "Tensor") -> "dict[str, Tensor]":
        """Return what else is logged of a training step."""
        del encoded, logit_scale
        return {}
