"""Recipe sections of the objectives: weights and settings of the terms of the total loss, and what each needs.

This is one of three places that a new objective touches: its section here, its class in a file of
`bali_ds/objectives/`, and its line in `bali_ds.objectives.registry.OBJECTIVES`.
"""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from bali_ds.config.section import Section

Need = Literal["text_views", "graph_views", "nodes", "masked_graph_text", "head", "name_gradients"]
"""What an objective needs in training: text views, graph views of any form, nodes of ego graphs, linearized
neighborhoods with masks, the masked-language-model head, gradients through name vectors. Modules that no objective
needs are not trained."""


class ObjectiveSection(Section):
    """Settings of one objective; with weight 0 it is not computed."""

    needs: ClassVar[frozenset[Need]] = frozenset()
    weight: float = Field(default=0.0, ge=0)
    """Factor of this objective in the total loss; 0 switches it off."""


class ContrastiveConfig(ObjectiveSection):
    """The alignment loss over text and graph views of all ranks."""

    needs = frozenset({"text_views", "graph_views"})
    weight: float = Field(default=1.0, ge=0)
    """Factor of this objective in the total loss; 0 switches it off."""
    kind: Literal["ntxent", "clip", "supcon", "marginal", "multi_similarity", "sigmoid"] = "ntxent"
    """Form of the loss."""
    temperature: float = Field(default=0.07, gt=0)
    """Divisor of the cosines, at the start if it is learned."""
    learn_temperature: bool = False
    """Learn the temperature."""
    logit_bias: float = -10.0
    """Initial value of the bias that `sigmoid` learns; other kinds have no bias."""
    further_views: tuple[Literal["mention", "name"], ...] = ()
    """More views of each concept of a passage in the joint loss, which the text encoder reads by themselves: the words
    of one of its mentions, and one of its names."""
    other_concepts: int = Field(default=0, ge=0, le=64)
    """Concepts drawn from the whole graph for each concept of a passage. A name and the graph view of each are views
    in the joint loss; half of the graph views with two or more sampled neighbors have their own name masked."""
    siblings: int = Field(default=0, ge=0, le=64)
    """Further concepts drawn for each concept of a passage as those of `other_concepts` are, with the same relation to
    the same neighbor: hard negatives. Siblings that share a name are not drawn; a concept without siblings gets one of
    the whole graph."""
    negatives: Literal["all", "node", "rank"] = "all"
    """Views of all ranks; of the ranks of each host, or of each rank alone, so that the loss depends on their number.
    `node` needs equally many ranks on every host."""
    communication: Literal["auto", "gather", "ring", "hierarchical"] = "auto"
    """How views travel between ranks; the loss is the same. auto: the fastest for the sizes of the step; the others are
    for measurements. `hierarchical` needs equally many ranks on every host."""
    communication_dtype: Literal["fp32", "bf16"] | None = None
    """Precision in which views are compared and sent between ranks; bf16 rounds them first, which halves the traffic
    and takes one product of tensor cores instead of three. null: bf16 on GPUs if `precision` is bf16, else fp32."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_kinds(cls, values: Any) -> Any:
        """Give kinds whose sources name other temperatures these as defaults.

        `sigmoid` starts as in SigLIP (Zhai et al., ICCV 2023): a learned logit scale of 10, a bias of -10. The scale of
        negatives of `multi_similarity` is 50, as Wang et al. (CVPR 2019) and BALI have it.
        """
        if not isinstance(values, dict):
            return values
        own = {"sigmoid": {"temperature": 0.1, "learn_temperature": True}, "multi_similarity": {"temperature": 0.02}}
        return own.get(str(values.get("kind")), {}) | values

    @model_validator(mode="after")
    def _views_are_compared_with_each_other(self) -> Self:
        if self.reads_names and not self.joint:
            raise ValueError(
                f"further_views, other_concepts and siblings need kind ntxent or multi_similarity, not {self.kind}"
            )
        return self

    def in_bf16(self, *, on_gpu: bool, model_in_bf16: bool) -> bool:
        """Return whether views are compared and sent in bf16."""
        if self.communication_dtype is None:
            return on_gpu and model_in_bf16
        return self.communication_dtype == "bf16"

    @property
    def joint(self) -> bool:
        """Whether all views are compared with each other, and not text views with graph views alone."""
        return self.kind in ("ntxent", "multi_similarity")

    @property
    def needs_nodes(self) -> bool:
        """Whether every host must have as many ranks as the others."""
        hierarchical = self.communication == "hierarchical" and self.negatives == "all"
        return bool(self.weight) and (self.negatives == "node" or hierarchical)

    @property
    def drawn_concepts(self) -> int:
        """Concepts drawn for each concept of a passage."""
        return self.other_concepts + self.siblings

    @property
    def reads_names(self) -> bool:
        """Whether names or mentions by themselves are views."""
        return bool(self.further_views or self.drawn_concepts)


class MaskedLanguageModelConfig(ObjectiveSection):
    """Cross-entropy of the masked tokens."""

    needs = frozenset({"head"})
    weight: float = Field(default=1.0, ge=0)
    """Factor of this objective in the total loss; 0 switches it off."""


class GraphLanguageModelConfig(ObjectiveSection):
    """Cross-entropy of masked tokens of linearized neighborhoods."""

    needs = frozenset({"masked_graph_text", "head"})


class LinkPredictionConfig(ObjectiveSection):
    """Predict the other concept of a fact from the graph vectors of both."""

    needs = frozenset({"nodes"})
    kind: Literal["distmult", "transe", "rotate"] = "distmult"
    """Score of a fact."""


class SynonymAlignmentConfig(ObjectiveSection):
    """Two names of one concept attract each other, as in SapBERT."""

    needs = frozenset({"name_gradients"})
    pairs: Literal["names", "mentions"] = "names"
    """Two names in the graph, or a name and the words of one of the concept's mentions, out of context."""
    kind: Literal["multi_similarity", "ntxent"] = "multi_similarity"
    """Form of the loss."""


class GraphInfomaxConfig(ObjectiveSection):
    """Deep graph infomax: distinguish node vectors of the graph from those of one with shuffled features."""

    needs = frozenset({"nodes"})


class DualConfig(ObjectiveSection):
    """A decoder that writes a passage's facts from its text, and its text from the graph."""

    needs = frozenset({"nodes", "head"})
    layers: int = Field(default=2, ge=1, le=1000)
    """Layers of the decoder."""
    heads: int = Field(default=4, ge=1, le=1000)
    """Attention heads of the decoder."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout of the decoder."""
    duality: float = Field(default=0.0, ge=0)
    """Weight of the squared duality gap."""


class ObjectiveConfig(Section):
    """The total loss is the weighted sum of its terms."""

    contrastive: ContrastiveConfig = ContrastiveConfig()
    masked_language_model: MaskedLanguageModelConfig = MaskedLanguageModelConfig()
    graph_language_model: GraphLanguageModelConfig = GraphLanguageModelConfig()
    link_prediction: LinkPredictionConfig = LinkPredictionConfig()
    synonym_alignment: SynonymAlignmentConfig = SynonymAlignmentConfig()
    graph_infomax: GraphInfomaxConfig = GraphInfomaxConfig()
    dual: DualConfig = DualConfig()

    def section(self, name: str) -> ObjectiveSection:
        """Return the settings of the objective of that name."""
        section: ObjectiveSection = getattr(self, name)
        return section

    @property
    def active(self) -> list[str]:
        """Names of the objectives with a weight above 0."""
        return [name for name in type(self).model_fields if self.section(name).weight]

    def needs(self, *any_of: Need) -> bool:
        """Return whether any active objective needs any of these."""
        return any(not self.section(name).needs.isdisjoint(any_of) for name in self.active)

    @property
    def needs_graph(self) -> bool:
        """Whether training computes graph views."""
        return self.needs("graph_views", "nodes", "masked_graph_text")

    def check_needs(self, *, linearized: bool, name_gradients: bool) -> None:
        """Check the needs of all active objectives against the graph encoder.

        Args:
            linearized: whether neighborhoods are text instead of graphs.
            name_gradients: whether gradients flow through name vectors.

        Raises:
            ValueError: an objective needs what the graph encoder does not give.
        """
        missing: dict[Need, str] = {}
        if linearized:
            missing["nodes"] = "needs another graph_encoder.kind than linearized, which has no nodes"
        else:
            missing["masked_graph_text"] = "needs graph_encoder.kind linearized"
        if not name_gradients:
            missing["name_gradients"] = "trains name vectors; set graph_encoder.names to gradient"
        for name in self.active:
            for need in self.section(name).needs & missing.keys():
                raise ValueError(f"objective.{name}: {missing[need]}")
        alignment = self.contrastive
        if alignment.weight and alignment.reads_names and not name_gradients:
            raise ValueError(
                "objective.contrastive: further_views, other_concepts and siblings train name vectors; "
                "set graph_encoder.names to gradient"
            )
        if alignment.weight and alignment.drawn_concepts and linearized:
            raise ValueError(
                "objective.contrastive: other_concepts and siblings need another graph_encoder.kind than linearized"
            )

    @model_validator(mode="after")
    def _something_to_minimize(self) -> Self:
        if not self.active:
            raise ValueError("every objective has weight 0; give one a positive weight")
        return self
