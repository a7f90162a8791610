"""The recipe: everything that defines a run, typed, strict and readable as YAML."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bali_ds.config.objectives import ObjectiveConfig
from bali_ds.config.section import Section


class DataConfig(Section):
    """Where graph and shards lie and how samples are drawn from them."""

    graph: Path
    shards: str | dict[str, Annotated[int, Field(ge=1)]]
    """A directory, or a URL (http, s3, gs, hf) that is read through a cache on each node; or several of them, each with
    its proportion: `{pubmed: 3, medmentions: 1}` takes three passages of the one for each of the other."""
    temperature: float = Field(default=1.0, ge=0, le=1)
    """Exponent of concept frequencies in sampling: 1 visits every passage once an epoch, lower values visit passages of
    rare concepts more often."""
    fan_out: int = Field(default=3, ge=0)
    """Neighbors drawn afresh for each concept at each visit."""
    workers: int = Field(default=1, ge=0)
    """Loader processes of each rank; 0 loads in the training process."""


class MaskingConfig(Section):
    """Probabilities of the three maskings (BALI, section 2.3)."""

    tokens: float = Field(default=0.15, ge=0, le=1)
    mentions: float = Field(default=0.15, ge=0, le=1)
    names: float = Field(default=0.15, ge=0, le=1)


class LoraConfig(Section):
    """Low-rank updates of the encoder's linear layers (Hu et al., ICLR 2022); needs the package peft."""

    rank: int = Field(default=8, ge=1)
    alpha: int = Field(default=16, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    modules: str | list[str] = "all-linear"
    """Names of the linear layers to update, as the architecture calls them."""


class TextEncoderConfig(Section):
    """The language model: a Hugging Face directory or hub name.

    A directory with config.json and no weights is initialized from the recipe's seed.
    """

    path: str
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Overrides the checkpoint's own dropout when set."""
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    """How attention is computed: torch's fused attention where the architecture has it, the package flash-attn (a GPU,
    half precision), or step by step."""
    layer: int | None = Field(default=None, ge=1)
    """The layer whose states are used, counted from 1: the encoder is cut after it. None is the last."""
    pooling: Literal["mean", "first", "attention"] = "mean"
    """How a text view follows from the tokens of its mentions."""
    view: Literal["concept", "mention"] = "concept"
    """Whether all mentions of a concept in a passage make one text view, or each mention its own."""
    markers: tuple[str, str] | None = None
    """Two tokens of the encoder's vocabulary that go before and after each mention in a passage."""
    frozen_embeddings: bool = False
    frozen_layers: int = Field(default=0, ge=0)
    """Layers, from the first on, that do not learn."""
    gradient_checkpointing: bool = False
    """Compute each layer's activations again in the backward pass instead of keeping them."""
    lora: LoraConfig | None = None
    """Learn low-rank updates instead of the encoder's own weights."""


class GraphEncoderConfig(Section):
    """The encoder of the star of a concept and its neighbors."""

    kind: Literal["gatv2", "graphsage", "compgcn", "linearized"] = "gatv2"
    """Layers over the star; or the neighborhood as text through the text encoder, without any layer."""
    layers: int = Field(default=2, ge=1)
    heads: int = Field(default=2, ge=1)
    """Attention heads of each layer, for gatv2."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    tokens: int = Field(default=128, ge=40)
    """Most tokens of a linearized neighborhood; whole facts are dropped beyond it."""
    names: Literal["gradient", "no_gradient", "cached", "learned"] = "gradient"
    """Whether the graph side teaches the text encoder, only uses it, or uses its vectors of some steps ago; or whether
    every concept has an embedding of its own in place of its names."""
    refresh_every: int = Field(default=200, ge=1)
    """Optimizer steps after which cached name vectors are made again."""


class OptimizerConfig(Section):
    """AdamW with one learning rate for the text encoder and one for everything else."""

    text_learning_rate: float = Field(default=2e-5, gt=0)
    graph_learning_rate: float = Field(default=2e-4, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup: float = Field(default=0.05, ge=0, le=1)
    """Fraction of all steps in which the learning rate rises linearly; a cosine to 0 follows."""
    gradient_clipping: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 switches clipping off."""


class BatchConfig(Section):
    """Passages of one optimizer step, over all ranks, and how they are cut to fit into memory."""

    passages: int = Field(default=256, ge=1)
    micro_batches: int = Field(default=1, ge=1)
    """Parts into which each rank cuts its share; only one part's activations live at a time."""


class CheckpointConfig(Section):
    """When to save and what to keep."""

    every: int = Field(default=500, ge=1)
    """Optimizer steps between checkpoints; the last step is always saved."""
    keep: int = Field(default=2, ge=1)
    """Newest complete checkpoints kept."""
    keep_every: int = Field(default=0, ge=0)
    """Checkpoints of steps that divide by this are kept for good; 0 keeps none."""
    retry_minutes: float = Field(default=10, ge=0)
    """A checkpoint of the last step that cannot be written, to a full disk for example, is tried again for so long."""


class FaultToleranceConfig(Section):
    """What is done about steps and machines that go wrong."""

    skip_non_finite: int = Field(default=0, ge=0)
    """Steps whose loss or gradient is no number that the run may leave out; one more ends it."""
    spike: float = Field(default=0, ge=0)
    """Loss above its recent median by so many deviations: return to the checkpoint, leave the samples out; 0: never."""
    step_minutes: float = Field(default=10, gt=0)
    """A step that takes longer has the stacks of all ranks written out."""
    host_minutes: float = Field(default=2, gt=0)
    """Ranks that hear nothing of a host for so long end, and name it."""
    data_minutes: float = Field(default=30, gt=0)
    """A rank whose loader delivers nothing for so long saves a checkpoint with the others, and the run stops."""
    max_minutes: float | None = Field(default=None, gt=0)
    """The run saves itself and stops after so long."""


class ValidationConfig(Section):
    """Text-graph retrieval on held-out passages while training runs."""

    every: int = Field(default=0, ge=0)
    """Optimizer steps between validations; 0 validates at the end only."""
    passages: int = Field(default=512, ge=1)


class LinkingConfig(Section):
    """Zero-shot linking before and after training."""

    dictionary: Path
    queries: Path


class EvaluationConfig(Section):
    """What is measured when training is done."""

    linking: LinkingConfig | None = None


class Recipe(Section):
    """One run from data to exported encoder."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    runs: Path = Path("runs")
    """The run is written to `runs`/`name`."""
    seed: int = Field(default=29, ge=0)
    data: DataConfig
    masking: MaskingConfig = MaskingConfig()
    text_encoder: TextEncoderConfig
    graph_encoder: GraphEncoderConfig = GraphEncoderConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    batch: BatchConfig = BatchConfig()
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps of the run; name either this or `epochs`."""
    epochs: float | None = Field(default=None, gt=0)
    """Visits of every passage."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    deepspeed: Path = Path("ds_configs/zero1.json")
    checkpoints: CheckpointConfig = CheckpointConfig()
    fault_tolerance: FaultToleranceConfig = FaultToleranceConfig()
    validation: ValidationConfig = ValidationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    log_every: int = Field(default=10, ge=1)
    """Optimizer steps between progress lines."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("name either steps or epochs")
        return self

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        linearized, names = self.graph_encoder.kind == "linearized", self.graph_encoder.names
        self.objective.check_needs(linearized=linearized, name_gradients=names == "gradient")
        if linearized and names in ("cached", "learned"):
            raise ValueError("graph_encoder.names: a linearized graph is text; take gradient or no_gradient")
        if self.text_encoder.attention == "flash_attention_2" and self.precision == "fp32":
            raise ValueError("text_encoder.attention: flash_attention_2 needs half precision; set precision to bf16")
        return self

    @property
    def directory(self) -> Path:
        """The run's directory."""
        return self.runs / self.name
