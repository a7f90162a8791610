"""The parts of the total loss and their weights."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from bali_ds.config.section import Section


class ContrastiveConfig(Section):
    """The alignment loss over text and graph views of all ranks."""

    weight: float = Field(default=1.0, ge=0)
    kind: Literal["ntxent", "clip", "supcon", "marginal", "multi_similarity", "sigmoid"] = "ntxent"
    temperature: float = Field(default=0.07, gt=0)
    learn_temperature: bool = False
    logit_bias: float = -10.0
    """Initial value of the bias that `sigmoid` learns; other kinds have no bias."""
    negatives: Literal["all", "rank"] = "all"
    """Views of all ranks, or of each rank alone, so that the loss depends on their number."""
    communication_dtype: Literal["fp32", "bf16"] = "fp32"
    """In which views travel between ranks; bf16 halves the traffic and rounds them before they are compared."""

    @model_validator(mode="before")
    @classmethod
    def _siglip_defaults(cls, values: Any) -> Any:
        """Let `sigmoid` start as in SigLIP (Zhai et al., ICCV 2023): a learned logit scale of 10, a bias of -10."""
        if isinstance(values, dict) and values.get("kind") == "sigmoid":
            return {"temperature": 0.1, "learn_temperature": True} | values
        return values


class MaskedLanguageModelConfig(Section):
    """Cross-entropy of the masked tokens."""

    weight: float = Field(default=1.0, ge=0)


class GraphLanguageModelConfig(Section):
    """Cross-entropy of masked tokens of linearized neighborhoods."""

    weight: float = Field(default=0.0, ge=0)


class LinkPredictionConfig(Section):
    """The other concept of a fact, told by the graph vectors of the two."""

    weight: float = Field(default=0.0, ge=0)
    kind: Literal["distmult", "transe", "rotate"] = "distmult"


class SynonymAlignmentConfig(Section):
    """Two names of one concept attract each other, as in SapBERT."""

    weight: float = Field(default=0.0, ge=0)
    pairs: Literal["names", "mentions"] = "names"
    """Of two names in the graph, or of a name and the words of one of the concept's mentions, out of context."""
    kind: Literal["multi_similarity", "ntxent"] = "multi_similarity"


class GraphInfomaxConfig(Section):
    """Node vectors tell the graph from one with shuffled features (deep graph infomax)."""

    weight: float = Field(default=0.0, ge=0)


class DualConfig(Section):
    """A decoder that writes a passage's facts from its text, and its text from the graph."""

    weight: float = Field(default=0.0, ge=0)
    layers: int = Field(default=2, ge=1)
    heads: int = Field(default=4, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    duality: float = Field(default=0.0, ge=0)
    """Weight of the squared duality gap."""


class ObjectiveConfig(Section):
    """The total loss is the weighted sum of its parts; one of weight 0 is not computed."""

    contrastive: ContrastiveConfig = ContrastiveConfig()
    masked_language_model: MaskedLanguageModelConfig = MaskedLanguageModelConfig()
    graph_language_model: GraphLanguageModelConfig = GraphLanguageModelConfig()
    link_prediction: LinkPredictionConfig = LinkPredictionConfig()
    synonym_alignment: SynonymAlignmentConfig = SynonymAlignmentConfig()
    graph_infomax: GraphInfomaxConfig = GraphInfomaxConfig()
    dual: DualConfig = DualConfig()

    def weight(self, name: str) -> float:
        """Return the weight of the part of that name."""
        return float(getattr(self, name).weight)

    @property
    def needs_graph(self) -> bool:
        """Whether training computes graph views."""
        names = ("contrastive", "graph_language_model", "link_prediction", "graph_infomax", "dual")
        return any(self.weight(name) for name in names)

    @property
    def needs_head(self) -> bool:
        """Whether training calls the masked-language-model head."""
        return any(self.weight(name) for name in ("masked_language_model", "graph_language_model", "dual"))

    @model_validator(mode="after")
    def _something_to_minimize(self) -> Self:
        if not any(self.weight(name) for name in type(self).model_fields):
            raise ValueError("every objective has weight 0; give one a positive weight")
        return self
