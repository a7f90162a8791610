"""Schema of the recipe, which defines a run."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bali_ds.config.objectives import ObjectiveConfig
from bali_ds.config.section import Section


class DataConfig(Section):
    """Graph, shards and sampling."""

    graph: Path
    """Directory of the graph."""
    shards: str | dict[str, Annotated[int, Field(ge=1)]]
    """A directory, or a URL (http, s3, gs, hf) that is read through a cache on each node; or a mixture of several with
    their proportions: `{pubmed: 3, medmentions: 1}` takes three passages of pubmed for each one of medmentions."""
    temperature: float = Field(default=1.0, ge=0, le=1)
    """Exponent of concept frequencies in sampling: with 1, every passage is read once per epoch; lower values repeat
    passages with rare concepts."""
    fan_out: int = Field(default=3, ge=0, le=10_000)
    """Neighbors that are sampled for each concept whenever its passage is read."""
    workers: int = Field(default=1, ge=0, le=1000)
    """Loader processes per rank; 0 loads in the training process."""

    @property
    def locations(self) -> list[str]:
        """Where the shard sets are."""
        return [self.shards] if isinstance(self.shards, str) else list(self.shards)


class MaskingConfig(Section):
    """Masking probabilities of tokens, whole mentions and concept names (BALI, section 2.3)."""

    tokens: float = Field(default=0.15, ge=0, le=1)
    """Probability with which a token is masked."""
    mentions: float = Field(default=0.15, ge=0, le=1)
    """Probability with which all tokens of a mention are masked."""
    names: float = Field(default=0.15, ge=0, le=1)
    """Probability with which a concept's own name is masked in its graph view, if it has two neighbors or more."""


class LoraConfig(Section):
    """LoRA of the text encoder (Hu et al., ICLR 2022); needs the package peft."""

    rank: int = Field(default=8, ge=1, le=100_000)
    """Rank of the updates."""
    alpha: int = Field(default=16, gt=0)
    """The updates are scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of the input of the updates."""
    modules: str | list[str] = "all-linear"
    """Names of the linear layers with LoRA, in the naming of the architecture."""


class TextEncoderConfig(Section):
    """The language model: a model directory or a name on the Hugging Face Hub."""

    path: str
    """Model directory, or `org/name` on the Hugging Face Hub."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """The weights of `path`; or new ones of its architecture, initialized from the seed of the recipe."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Dropout of the encoder; None keeps that of its configuration."""
    attention: Literal["packed", "sdpa", "flash_attention_2", "eager"] = "packed"
    """All sequences in one call without padding (packed); or length buckets with an implementation of transformers, of
    which flash_attention_2 needs the package flash-attn, a GPU and half precision."""
    layer: int | None = Field(default=None, ge=1)
    """Layer whose hidden states are used, counted from 1; later layers are removed. None uses the last layer."""
    pooling: Literal["mean", "first", "last", "attention"] = "mean"
    """Pooling of the mention tokens of a text view; with last, names are pooled to their last token too."""
    bidirectional: bool = False
    """Let a decoder attend to both sides (LLM2Vec, BehnamGhader et al., COLM 2024)."""
    view: Literal["concept", "mention"] = "concept"
    """One text view per concept of a passage, over all its mentions, or one per mention."""
    query_prompt: Annotated[str, Field(pattern=r"\S")] | None = None
    """Instruction before passages, mentions and questions, and not before names, in training and in the export:
    `"Instruct: Find the name of this biomedical concept.\\nQuery: "`. No vector is pooled from its tokens."""
    markers: tuple[str, str] | None = None
    """Entity markers: two tokens of the vocabulary that are inserted before and after each mention in a passage."""
    frozen_embeddings: bool = False
    """Do not train the token embeddings."""
    frozen_layers: int = Field(default=0, ge=0)
    """Number of first layers whose weights are frozen."""
    fused_layers: bool = True
    """On GPUs in half precision, below ZeRO stage 3, compute each layer of BERT, RoBERTa and their kin as one
    operation."""
    gradient_checkpointing: bool = False
    """Recompute the activations of each layer in the backward pass instead of storing them."""
    lora: LoraConfig | None = None
    """Train low-rank updates instead of the weights of the encoder."""


class GraphEncoderConfig(Section):
    """The encoder of a concept and its sampled neighborhood."""

    kind: Literal["gatv2", "graphsage", "compgcn", "linearized"] = "gatv2"
    """A graph neural network over the ego graph, or the text encoder over the neighborhood as text (linearized)."""
    layers: int = Field(default=2, ge=1, le=1000)
    """Layers, and hops of the sampled neighborhood that a concept sees."""
    heads: int = Field(default=2, ge=1, le=1000)
    """Attention heads per layer (gatv2)."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout between the layers."""
    tokens: int = Field(default=128, ge=40, le=1_000_000)
    """Maximum tokens of a linearized neighborhood; facts that do not fit are dropped."""
    names: Literal["gradient", "no_gradient", "cached", "learned"] = "gradient"
    """Node features: name vectors of the text encoder with or without gradients, or from a cache that is refreshed
    every `refresh_every` steps, or a learned embedding per concept."""
    refresh_every: int = Field(default=200, ge=1)
    """Optimizer steps between updates of cached name vectors."""


class OptimizerConfig(Section):
    """AdamW with separate learning rates for the text encoder and all other modules."""

    text_learning_rate: float = Field(default=2e-5, gt=0)
    """Highest learning rate of the text encoder and its pretrained head."""
    graph_learning_rate: float = Field(default=2e-4, gt=0)
    """Highest learning rate of all new modules."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay of matrices."""
    warmup: float = Field(default=0.05, ge=0, le=1)
    """Fraction of all steps with linear warm-up; cosine decay to 0 follows."""
    gradient_clipping: float = Field(default=1.0, ge=0)
    """Maximum global gradient norm; 0 disables clipping."""


class BatchConfig(Section):
    """Global batch size and its division into micro-batches."""

    passages: int = Field(default=256, ge=1)
    """Passages of one optimizer step over all ranks."""
    micro_batches: int = Field(default=1, ge=1)
    """Micro-batches of each rank per step; the activations of one are in memory at a time."""


class CheckpointConfig(Section):
    """Interval and retention of checkpoints."""

    every: int = Field(default=500, ge=1)
    """Optimizer steps between checkpoints; the last step is always saved."""
    keep: int = Field(default=2, ge=1)
    """Number of newest complete checkpoints to keep."""
    keep_every: int = Field(default=0, ge=0)
    """Checkpoints at multiples of this step are never deleted; 0 deletes all but the newest `keep`."""
    retry_minutes: float = Field(default=10, ge=0)
    """Minutes during which the checkpoint of the last step is retried if it cannot be written."""


class FaultToleranceConfig(Section):
    """Handling of non-finite steps, loss spikes, timeouts and lost hosts."""

    skip_non_finite: int = Field(default=0, ge=0)
    """Steps with a non-finite loss or gradient that the run may skip; one more ends it."""
    spike: float = Field(default=0, ge=0)
    """Deviations above the recent median at which a loss is a spike: the run returns to the checkpoint and skips the
    samples. 0 disables the check."""
    step_minutes: float = Field(default=10, gt=0)
    """Minutes after which a step is reported as stuck: the stacks of all ranks are written to files."""
    host_minutes: float = Field(default=2, gt=0)
    """Minutes without a heartbeat after which a host is lost and all ranks exit."""
    data_minutes: float = Field(default=30, gt=0)
    """Minutes without data from the loader after which the run saves a checkpoint and stops."""
    max_minutes: float | None = Field(default=None, gt=0)
    """Minutes after which the run saves a checkpoint and stops; None for no limit."""


class ValidationConfig(Section):
    """Text-graph retrieval on held-out passages during training."""

    every: int = Field(default=0, ge=0)
    """Optimizer steps between validations; 0 validates at the end only."""
    passages: int = Field(default=512, ge=1)
    """Maximum number of validation passages."""


class LinkingConfig(Section):
    """Zero-shot linking before and after training."""

    dictionary: Path
    """File of CUI||name lines."""
    queries: Path
    """TSV file with columns mention and cui, as for `bali-ds evaluate linking`."""


class EvaluationConfig(Section):
    """Export, evaluation and report after training."""

    when: Literal["after", "never", "separate"] = "after"
    """Rank 0 does them while the job keeps its hosts (after), or the job ends with its last checkpoint and `bali-ds
    finalize RUN` does them on one GPU or CPU (separate), or nothing does (never)."""
    linking: LinkingConfig | None = None


class Recipe(Section):
    """Recipe of a run, from data to exported encoder."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run and of its directory: letters, digits, dots, dashes and underscores."""
    runs: Path = Path("runs")
    """Parent of the run directory, `runs`/`name`."""
    seed: int = Field(default=29, ge=0)
    """Seed of everything random in a run."""
    data: DataConfig
    masking: MaskingConfig = MaskingConfig()
    text_encoder: TextEncoderConfig
    graph_encoder: GraphEncoderConfig = GraphEncoderConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    batch: BatchConfig = BatchConfig()
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps of the run; set either this or `epochs`."""
    epochs: float | None = Field(default=None, gt=0)
    """Epochs of the run."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Precision of weights and activations in the engine. Take `fp32` on CPUs without AVX-512 and `fp16` on GPUs before
    Ampere: they emulate bf16, many times slower."""
    deterministic: bool = False
    """Repeat a run on the same GPUs bit for bit, with slower kernels; runs on CPUs always repeat."""
    deepspeed: Path = Path("zero1")
    """DeepSpeed JSON file: a path, or the bare name of one in ds_configs."""
    checkpoints: CheckpointConfig = CheckpointConfig()
    fault_tolerance: FaultToleranceConfig = FaultToleranceConfig()
    validation: ValidationConfig = ValidationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    log_every: int = Field(default=10, ge=1)
    """Optimizer steps between progress lines."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    """Where metrics are shown beside metrics.jsonl, as a list: `tensorboard` writes event files into the run directory,
    `wandb` (Weights & Biases) and `mlflow` read their own environment variables, such as WANDB_PROJECT and
    MLFLOW_TRACKING_URI. A resumed run continues the same run there."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("set either steps or epochs")
        return self

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        linearized, names = self.graph_encoder.kind == "linearized", self.graph_encoder.names
        self.objective.check_needs(linearized=linearized, name_gradients=names == "gradient")
        if linearized and names in ("cached", "learned"):
            raise ValueError("graph_encoder.names: must be gradient or no_gradient with graph_encoder.kind linearized")
        if self.text_encoder.attention == "flash_attention_2" and self.precision == "fp32":
            raise ValueError("text_encoder.attention: flash_attention_2 needs half precision; set precision to bf16")
        return self

    @property
    def directory(self) -> Path:
        """The run directory."""
        return self.runs / self.name
