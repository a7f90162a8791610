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


class TextEncoder(Section):
    """The language model: a Hugging Face directory or hub name.

    A directory with config.json and no weights is initialised from the recipe's seed.
    """

    path: str
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Overrides the checkpoint's own dropout when set."""


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


class Contrastive(Section):
    """The alignment loss over text and graph views of all ranks."""

    weight: float = Field(default=1.0, ge=0)
    kind: Literal["ntxent", "clip", "supcon", "marginal", "multi_similarity", "sigmoid"] = "ntxent"
    temperature: float = Field(default=0.07, gt=0)
    learn_temperature: bool = False


class MaskedLanguageModel(Section):
    """Cross-entropy of the masked tokens."""

    weight: float = Field(default=1.0, ge=0)


class GraphLanguageModel(Section):
    """Cross-entropy of masked tokens of linearised neighbourhoods."""

    weight: float = Field(default=0.0, ge=0)


class Objective(Section):
    """The total loss is the weighted sum of its parts; one of weight 0 is not computed."""

    contrastive: Contrastive = Contrastive()
    masked_language_model: MaskedLanguageModel = MaskedLanguageModel()
    graph_language_model: GraphLanguageModel = GraphLanguageModel()

    def weight(self, name: str) -> float:
        """Return the weight of the part of that name."""
        return float(getattr(self, name).weight)

    @property
    def needs_graph(self) -> bool:
        """Whether training computes graph views."""
        return any(self.weight(name) for name in ("contrastive", "graph_language_model"))

    @property
    def needs_head(self) -> bool:
        """Whether training calls the masked-language-model head."""
        return any(self.weight(name) for name in ("masked_language_model", "graph_language_model"))

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
