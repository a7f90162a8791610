"""What the stream does to samples on their way into a batch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.errors import InputError

if TYPE_CHECKING:  # a worker process reads no recipe and starts sooner without
    from bali_ds.config import Recipe


@dataclass(frozen=True)
class StreamSettings:
    """Settings of order, masking, neighborhoods and padding; the defaults are those of BALI.

    Attributes:
        seed: everything random follows from it, the epoch and the sample.
        fan_out: neighbors drawn for each concept of a passage.
        token_masking: share of tokens that masked language modeling predicts.
        mention_masking: share of passages all of whose mentions are masked.
        name_masking: share of concepts whose own name is masked in the graph view.
        passage_blocks: blocks of similar length that the passages of a batch are cut into.
        name_blocks: the same for the concept names.
        window: samples shuffled among each other within a lane of a large shard set.
        split: "train" or "validation".
        temperature: exponent of concept frequencies in sampling; 1 samples passages evenly, 0 concepts.
        bad_samples: share of samples that may be replaced, as bad, before the run stops.
        graph_view: what a concept's graph view is made of: "star", its neighborhood as a graph, or "linearized", as
            text.
        with_graph: whether there are graph views at all.
        graph_tokens: most tokens of a neighborhood as text.
        graph_masking: share of its tokens that masked language modeling predicts.
        tokenizer: directory or hub name, to read the names of relations.
        each_mention: a text view for each mention of a concept rather than one for all.
        name_rows: nodes refer to rows of a table of all names, and no name travels as tokens.
        concept_rows: nodes refer to concepts, and no name travels at all.
        hold_out: a fact of each star is not a message but to be predicted.
        synonyms: "names" draws two names of each concept that has them; "mentions" a name and the words of a mention.
        triples: give each passage without masks, and its facts as text.
        markers: token ids that go before and after each mention of a passage; None: none do.
    """

    seed: int = 0
    fan_out: int = 3
    token_masking: float = 0.15
    mention_masking: float = 0.15
    name_masking: float = 0.15
    passage_blocks: int = 4
    name_blocks: int = 6
    window: int = 1024
    split: str = "train"
    temperature: float = 1.0
    bad_samples: float = 0.01
    graph_view: str = "star"
    with_graph: bool = True
    graph_tokens: int = 128
    graph_masking: float = 0.0
    tokenizer: str = ""
    each_mention: bool = False
    name_rows: bool = False
    concept_rows: bool = False
    hold_out: bool = False
    synonyms: str = ""
    triples: bool = False
    markers: tuple[int, int] | None = None

    @classmethod
    def of(cls, recipe: "Recipe") -> "StreamSettings":
        """Return what a recipe says about the stream.

        Raises:
            InputError: a marker is no token of the encoder's tokenizer.
        """
        markers = recipe.text_encoder.markers
        return cls(
            seed=recipe.seed,
            fan_out=recipe.data.fan_out,
            temperature=recipe.data.temperature,
            token_masking=recipe.masking.tokens,
            mention_masking=recipe.masking.mentions,
            name_masking=recipe.masking.names,
            graph_view="linearized" if recipe.graph_encoder.kind == "linearized" else "star",
            with_graph=recipe.objective.needs_graph,
            graph_tokens=recipe.graph_encoder.tokens,
            graph_masking=recipe.masking.tokens if recipe.objective.graph_language_model.weight else 0.0,
            tokenizer=recipe.text_encoder.path,
            each_mention=recipe.text_encoder.view == "mention",
            name_rows=recipe.graph_encoder.names == "cached",
            concept_rows=recipe.graph_encoder.names == "learned",
            hold_out=bool(recipe.objective.link_prediction.weight),
            synonyms=recipe.objective.synonym_alignment.pairs if recipe.objective.synonym_alignment.weight else "",
            triples=bool(recipe.objective.dual.weight),
            markers=Tokenizer.load(recipe.text_encoder.path).ids_of(markers) if markers else None,
        )

    def __post_init__(self) -> None:
        shares = ("token_masking", "mention_masking", "name_masking", "graph_masking", "bad_samples", "temperature")
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} {getattr(self, name)}: is a share; take a number between 0 and 1")
        for name in ("passage_blocks", "name_blocks", "window"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)}: take a whole number from 1 on")
        if self.fan_out < 0:
            raise InputError(f"fan_out {self.fan_out}: take a whole number from 0 on")
