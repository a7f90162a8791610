"""The recipe: everything that defines a run, typed, strict and readable as YAML."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bali_ds.errors import InputError


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values never change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(Section):
    """Where graph and shards lie and how samples are drawn from them."""

    graph: Path
    shards: str | dict[str, Annotated[int, Field(ge=1)]]
    """A directory, or a URL (http, s3, gs, hf) that is read through a cache on each node; or several of them, each with
    its proportion: `{pubmed: 3, medmentions: 1}` takes three passages of the one for each of the other."""
    temperature: float = Field(default=1.0, ge=0, le=1)
    """Exponent of concept frequencies in sampling: 1 visits every passage once an epoch, lower values visit passages of
    rare concepts more often."""
    fan_out: int = Field(default=3, ge=0)
    """Neighbours drawn afresh for each concept at each visit."""
    workers: int = Field(default=1, ge=0)
    """Loader processes of each rank; 0 loads in the training process."""


class Masking(Section):
    """Probabilities of the three maskings (BALI, section 2.3)."""

    tokens: float = Field(default=0.15, ge=0, le=1)
    mentions: float = Field(default=0.15, ge=0, le=1)
    names: float = Field(default=0.15, ge=0, le=1)


class Lora(Section):
    """Low-rank updates of the encoder's linear layers (Hu et al., ICLR 2022); needs the package peft."""

    rank: int = Field(default=8, ge=1)
    alpha: int = Field(default=16, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    modules: str | list[str] = "all-linear"
    """Names of the linear layers to update, as the architecture calls them."""


class TextEncoder(Section):
    """The language model: a Hugging Face directory or hub name.

    A directory with config.json and no weights is initialised from the recipe's seed.
    """

    path: str
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Overrides the checkpoint's own dropout when set."""
    pooling: Literal["mean", "first", "attention"] = "mean"
    """How a text view follows from the tokens of its mentions."""
    view: Literal["concept", "mention"] = "concept"
    """Whether all mentions of a concept in a passage make one text view, or each mention its own."""
    frozen_embeddings: bool = False
    frozen_layers: int = Field(default=0, ge=0)
    """Layers, from the first on, that do not learn."""
    gradient_checkpointing: bool = False
    """Compute each layer's activations again in the backward pass instead of keeping them."""
    lora: Lora | None = None
    """Learn low-rank updates instead of the encoder's own weights."""


class GraphEncoder(Section):
    """The encoder of the star of a concept and its neighbours."""

    kind: Literal["gatv2", "graphsage", "compgcn", "linearised"] = "gatv2"
    """Layers over the star; or the neighbourhood as text through the text encoder, without any layer."""
    layers: int = Field(default=2, ge=1)
    heads: int = Field(default=2, ge=1)
    """Attention heads of each layer, for gatv2."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    tokens: int = Field(default=128, ge=40)
    """Most tokens of a linearised neighbourhood; whole facts are dropped beyond it."""
    names: Literal["gradient", "no_gradient", "cached"] = "gradient"
    """Whether the graph side teaches the text encoder, only uses it, or uses its vectors of some steps ago."""
    refresh_every: int = Field(default=200, ge=1)
    """Optimiser steps after which cached name vectors are made again."""


class Contrastive(Section):
    """The alignment loss over text and graph views of all ranks."""

    weight: float = Field(default=1.0, ge=0)
    kind: Literal["ntxent", "clip", "supcon", "marginal", "multi_similarity", "sigmoid"] = "ntxent"
    temperature: float = Field(default=0.07, gt=0)
    learn_temperature: bool = False
    negatives: Literal["all", "rank"] = "all"
    """Views of all ranks, or of each rank alone, so that the loss depends on their number."""


class MaskedLanguageModel(Section):
    """Cross-entropy of the masked tokens."""

    weight: float = Field(default=1.0, ge=0)


class GraphLanguageModel(Section):
    """Cross-entropy of masked tokens of linearised neighbourhoods."""

    weight: float = Field(default=0.0, ge=0)


class LinkPrediction(Section):
    """The other concept of a fact, told by the graph vectors of the two."""

    weight: float = Field(default=0.0, ge=0)
    kind: Literal["distmult", "transe", "rotate"] = "distmult"


class SynonymAlignment(Section):
    """Two names of one concept attract each other, as in SapBERT."""

    weight: float = Field(default=0.0, ge=0)
    kind: Literal["multi_similarity", "ntxent"] = "multi_similarity"


class GraphInfomax(Section):
    """Node vectors tell the graph from one with shuffled features (deep graph infomax)."""

    weight: float = Field(default=0.0, ge=0)


class Dual(Section):
    """A decoder that writes a passage's facts from its text, and its text from the graph."""

    weight: float = Field(default=0.0, ge=0)
    layers: int = Field(default=2, ge=1)
    heads: int = Field(default=4, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    duality: float = Field(default=0.0, ge=0)
    """Weight of the squared duality gap."""


class Objective(Section):
    """The total loss is the weighted sum of its parts; one of weight 0 is not computed."""

    contrastive: Contrastive = Contrastive()
    masked_language_model: MaskedLanguageModel = MaskedLanguageModel()
    graph_language_model: GraphLanguageModel = GraphLanguageModel()
    link_prediction: LinkPrediction = LinkPrediction()
    synonym_alignment: SynonymAlignment = SynonymAlignment()
    graph_infomax: GraphInfomax = GraphInfomax()
    dual: Dual = Dual()

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
    def _something_to_minimise(self) -> Self:
        if not any(self.weight(name) for name in type(self).model_fields):
            raise ValueError("every objective has weight 0; give one a positive weight")
        return self


class Optimiser(Section):
    """AdamW with one learning rate for the text encoder and one for everything else."""

    text_learning_rate: float = Field(default=2e-5, gt=0)
    graph_learning_rate: float = Field(default=2e-4, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup: float = Field(default=0.05, ge=0, le=1)
    """Fraction of all steps in which the learning rate rises linearly; a cosine to 0 follows."""
    gradient_clipping: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 switches clipping off."""


class Batch(Section):
    """Passages of one optimiser step, over all ranks, and how they are cut to fit into memory."""

    passages: int = Field(default=256, ge=1)
    chunks: int = Field(default=1, ge=1)
    """Parts into which each rank cuts its share; only one part's activations live at a time."""


class Checkpoints(Section):
    """When to save and what to keep."""

    every: int = Field(default=500, ge=1)
    """Optimiser steps between checkpoints; the last step is always saved."""
    keep: int = Field(default=2, ge=1)
    """Newest complete checkpoints kept."""
    keep_every: int = Field(default=0, ge=0)
    """Checkpoints of steps that divide by this are kept for good; 0 keeps none."""


class Guards(Section):
    """What is done about steps and machines that go wrong."""

    skip_non_finite: int = Field(default=0, ge=0)
    """Steps whose loss or gradient is no number that the run may leave out; one more ends it."""
    spike: float = Field(default=0, ge=0)
    """Loss above its recent median by so many deviations: return to the checkpoint, leave the samples out; 0: never."""
    step_minutes: float = Field(default=10, gt=0)
    """A step that takes longer has the stacks of all ranks written out."""
    host_minutes: float = Field(default=2, gt=0)
    """Ranks that hear nothing of a host for so long end, and name it."""
    max_minutes: float | None = Field(default=None, gt=0)
    """The run saves itself and stops after so long."""


class Validation(Section):
    """Text-graph retrieval on held-out passages while training runs."""

    every: int = Field(default=0, ge=0)
    """Optimiser steps between validations; 0 validates at the end only."""
    passages: int = Field(default=512, ge=1)


class Linking(Section):
    """Zero-shot linking before and after training."""

    dictionary: Path
    queries: Path


class Evaluation(Section):
    """What is measured when training is done."""

    linking: Linking | None = None


class Recipe(Section):
    """One run from data to exported encoder."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    runs: Path = Path("runs")
    """The run is written to `runs`/`name`."""
    seed: int = Field(default=29, ge=0)
    data: Data
    masking: Masking = Masking()
    text_encoder: TextEncoder
    graph_encoder: GraphEncoder = GraphEncoder()
    objective: Objective = Objective()
    optimiser: Optimiser = Optimiser()
    batch: Batch = Batch()
    steps: int | None = Field(default=None, ge=1)
    """Optimiser steps of the run; name either this or `epochs`."""
    epochs: float | None = Field(default=None, gt=0)
    """Visits of every passage."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    deepspeed: Path = Path("ds_configs/zero1.json")
    checkpoints: Checkpoints = Checkpoints()
    guards: Guards = Guards()
    validation: Validation = Validation()
    evaluation: Evaluation = Evaluation()
    log_every: int = Field(default=10, ge=1)
    """Optimiser steps between progress lines."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("name either steps or epochs")
        return self

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        if self.objective.graph_language_model.weight and self.graph_encoder.kind != "linearised":
            raise ValueError("objective.graph_language_model: reads text; set graph_encoder.kind to linearised")
        if self.graph_encoder.kind == "linearised":
            for name in ("link_prediction", "graph_infomax", "dual"):
                if self.objective.weight(name):
                    raise ValueError(f"objective.{name}: needs nodes; take another graph_encoder.kind than linearised")
            if self.graph_encoder.names == "cached":
                raise ValueError("graph_encoder.names: a linearised graph has no name vectors to cache")
        if self.graph_encoder.names != "gradient" and self.objective.synonym_alignment.weight:
            raise ValueError("objective.synonym_alignment: teaches name vectors; set graph_encoder.names to gradient")
        return self

    @property
    def directory(self) -> Path:
        """The run's directory."""
        return self.runs / self.name


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a YAML recipe and apply `key=value` overrides; keys of nested sections are joined by dots.

    Raises:
        InputError: the file is missing or is no YAML mapping, or a key or value does not fit; an unknown key is
            answered with the nearest known one.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InputError(f"{where}: is no valid YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds no mapping of keys to values")
    for override in overrides:
        _apply(values, override)
    return _validated(values, str(path))


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"{override}: is no override; write key=value, for example optimiser.warmup=0.1")
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise InputError(f"{override}: {section} is a value, not a section")
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{override}: the value is no valid YAML") from error


def _validated(values: dict[str, Any], origin: str) -> Recipe:
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        errors = error.errors()
        # a misspelt key also leaves the right one missing: name the misspelling
        first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise InputError(f"{origin}: {key}: no such key{_suggestion(first['loc'])}") from None
        message = first["msg"].removeprefix("Value error, ")
        given = "" if first["type"] in ("missing", "value_error") else f", got {first['input']!r}"
        raise InputError(f"{origin}: {key + ': ' if key else ''}{message}{given}") from None


def _suggestion(location: tuple[int | str, ...]) -> str:
    section: Any = Recipe
    for part in location[:-1]:
        section = _section_class(section.model_fields[part].annotation)
    wrong = str(location[-1])
    known = list(section.model_fields)
    nearest = difflib.get_close_matches(wrong, known, n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]}?" if nearest else f"; known are {', '.join(known)}"


def _section_class(annotation: Any) -> Any:
    candidates = (annotation, *getattr(annotation, "__args__", ()))
    return next(item for item in candidates if isinstance(item, type) and issubclass(item, Section))


def dump_recipe(recipe: Recipe) -> str:
    """Return the resolved recipe, defaults included, as YAML that `load_recipe` reads back."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
