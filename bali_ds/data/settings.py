"""Settings of the loader: what is done to samples on their way into a batch."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.data.batch_part import BatchPart, rebuild
from bali_ds.errors import InputError

if TYPE_CHECKING:  # a worker process reads no recipe and starts sooner without pydantic
    from bali_ds.config import Recipe


@dataclass(frozen=True)
class StreamSettings:
    """Settings of order, masking and neighborhoods; the defaults are those of BALI.

    Attributes:
        seed: everything random follows from it, the epoch and the sample.
        fan_out: neighbors sampled for each concept of a passage.
        token_masking: share of tokens that masked language modeling predicts.
        mention_masking: share of passages all of whose mentions are masked.
        name_masking: share of concepts whose own name is masked in the graph view.
        window: samples shuffled among each other within a lane of a large shard set.
        split: "train" or "validation".
        temperature: exponent of concept frequencies in sampling; 1 samples passages evenly, 0 concepts.
        bad_samples: share of samples that may be replaced, as bad, before the run stops.
        graph_view: "ego_graph" or "linearized", the form of a concept's neighborhood: a graph or text.
        with_graph: whether there are graph views at all.
        graph_tokens: most tokens of facts as text.
        graph_masking: share of the tokens of linearized neighborhoods that masked language modeling predicts.
        tokenizer: directory or hub name, to read the names of relations.
        each_mention: make a text view of each mention of a concept instead of one of all.
        name_rows: let nodes refer to rows of a table of all names; no name is sent as tokens.
        concept_rows: let nodes refer to concepts; no name is sent.
        markers: token ids of the entity markers before and after each mention of a passage; None for none.
        prompt: token ids before each passage and each mention that is read by itself.
        parts: what objectives add to each batch.
    """

    seed: int = 0
    fan_out: int = 3
    token_masking: float = 0.15
    mention_masking: float = 0.15
    name_masking: float = 0.15
    window: int = 1024
    split: str = "train"
    temperature: float = 1.0
    bad_samples: float = 0.01
    graph_view: str = "ego_graph"
    with_graph: bool = True
    graph_tokens: int = 128
    graph_masking: float = 0.0
    tokenizer: str = ""
    each_mention: bool = False
    name_rows: bool = False
    concept_rows: bool = False
    markers: tuple[int, int] | None = None
    prompt: tuple[int, ...] = ()
    parts: tuple[BatchPart, ...] = ()

    @classmethod
    def of(cls, recipe: "Recipe", parts: tuple[BatchPart, ...]) -> "StreamSettings":
        """Return what a recipe says about the data; `bali_ds.objectives.registry.stream_settings` has the parts, too.

        Raises:
            InputError: a marker is not a token of the encoder's tokenizer.
        """
        objective, encoder = recipe.objective, recipe.text_encoder
        return cls(
            seed=recipe.seed,
            fan_out=recipe.data.fan_out,
            temperature=recipe.data.temperature,
            token_masking=recipe.masking.tokens,
            mention_masking=recipe.masking.mentions,
            name_masking=recipe.masking.names,
            graph_view="linearized" if recipe.graph_encoder.kind == "linearized" else "ego_graph",
            with_graph=objective.needs_graph,
            graph_tokens=recipe.graph_encoder.tokens,
            graph_masking=recipe.masking.tokens if objective.needs("masked_graph_text") else 0.0,
            tokenizer=encoder.path,
            each_mention=encoder.view == "mention",
            name_rows=recipe.graph_encoder.names == "cached",
            concept_rows=recipe.graph_encoder.names == "learned",
            markers=Tokenizer.load(encoder.path).ids_of(encoder.markers) if encoder.markers else None,
            prompt=Tokenizer.query_prompt_ids(encoder.path, encoder.query_prompt),
            parts=parts,
        )

    def __post_init__(self) -> None:
        shares = ("token_masking", "mention_masking", "name_masking", "graph_masking", "bad_samples", "temperature")
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} {getattr(self, name)}: must be a share between 0 and 1")
        if self.window < 1:
            raise InputError(f"window {self.window}: must be at least 1")
        if self.fan_out < 0:
            raise InputError(f"fan_out {self.fan_out}: must be at least 0")

    def describe(self) -> dict[str, Any]:
        """Return JSON values from which `rebuild` makes the same settings in another process."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"parts": [part.describe() for part in self.parts]}

    @classmethod
    def rebuild(cls, description: dict[str, Any]) -> "StreamSettings":
        """Return the settings that `describe` described."""
        return cls(**description | {"parts": rebuild(description["parts"])})
