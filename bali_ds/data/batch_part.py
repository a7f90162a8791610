"""What an objective adds to every batch, as the loader sees it: an interface that objectives implement."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any, ClassVar, NamedTuple

from bali_ds.data.batch import ArrayTree
from bali_ds.data.ego_graphs import ConceptViews, EgoGraphs
from bali_ds.data.mixture import Mixture
from bali_ds.data.packing import PackedMasked
from bali_ds.data.reader import Samples
from bali_ds.data.sequences import NO_SEQUENCES, Flags, Ints, MaskedSequences, TokenSequences, Vocabulary
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.graph.neighbor_sampling import NeighborSampler
from bali_ds.randomness import Keys


@dataclass(frozen=True)
class SampleSource:
    """Where samples come from, and the vocabulary that they are written in.

    Attributes:
        shards: the shard sets.
        graph: the graph that they were built from.
        vocabulary: special tokens.
        relation_names: the name of each relation id below R; empty where no facts are written as text.
        graph_tokens: most tokens of facts as text.
        fan_out: neighbors sampled for each concept.
        neighbors: samples facts of any concept as they were stored with the samples: (concept_ids, fan_out, keys).
        prompt: token ids before each passage and each mention that is read by itself.
    """

    shards: Mixture
    graph: KnowledgeGraph
    vocabulary: Vocabulary
    relation_names: TokenSequences
    graph_tokens: int
    fan_out: int
    neighbors: NeighborSampler
    prompt: tuple[int, ...] = ()


class SampledInputs(NamedTuple):
    """Samples and all that is sampled for each of them alone.

    Positions count through all tokens, nodes and views.

    Attributes:
        source: where they come from.
        samples: as stored, with entity markers and a prompt where the settings ask for them.
        views: their distinct concepts.
        view_keys: uint64 [V], the key from which everything random about a view follows.
        passages: their masked tokens.
        mention_tokens: int64 [P], positions of tokens of mentions.
        mention_views: int64 [P], the text view of each, ascending.
        text_views: int64, the view of each text view, ascending.
        ego_graphs: the sampled neighborhoods.
        node_names: int64 [N], the sampled name of each node.
        hidden: bool [N], whether that name is masked.
        neighborhoods: the masked tokens of each view's linearized neighborhood; empty where views are ego graphs.
    """

    source: SampleSource
    samples: Samples
    views: ConceptViews
    view_keys: Keys
    passages: MaskedSequences
    mention_tokens: Ints
    mention_views: Ints
    text_views: Ints
    ego_graphs: EgoGraphs
    node_names: Ints
    hidden: Flags
    neighborhoods: MaskedSequences


class BatchSlice(NamedTuple):
    """Which of the sampled inputs go into one batch.

    Attributes:
        inputs: of several batches.
        samples, views, nodes: ranges of the inputs' samples, views and nodes.
        facts: int64, the facts of these ego graphs.
        passages: the passages of the batch, packed.
        name_rows: int64 [n + m], the rows in `Batch.names` of the names that a part has encoded.
    """

    inputs: SampledInputs
    samples: slice
    views: slice
    nodes: slice
    facts: Ints
    passages: PackedMasked
    name_rows: Ints


class NamesToEncode(NamedTuple):
    """Names that a part has encoded with those of the nodes.

    Attributes:
        name_ids: int64 [n], names of the graph.
        spelled: m other token sequences, without special tokens.
    """

    name_ids: Ints
    spelled: TokenSequences = NO_SEQUENCES


class BatchPart(ABC):
    """What one objective adds to every batch; `Sampled` is what it samples.

    Subclasses are frozen dataclasses whose fields are strings and numbers: a loader worker builds the same part again
    from them. Their modules import no torch, so that a worker starts in a fraction of a second. Everything random
    follows from keys derived from `SampledInputs.view_keys`, so that it does not depend on the rest of the batch.

    Attributes:
        name: of the objective in the recipe, and of the part in `Batch.parts`.
        content: the dataclass of the part in a batch.
        extra_neighbors: neighbors to sample beyond the fan-out.
        writes_facts: whether the part needs the names of relations.
        encodes_names: whether the part adds names to encode.
    """

    name: ClassVar[str]
    content: ClassVar[type[ArrayTree[Any]]]
    extra_neighbors: ClassVar[int] = 0
    writes_facts: ClassVar[bool] = False
    encodes_names: ClassVar[bool] = False

    def sample(self, inputs: SampledInputs) -> Any:
        """Return what is sampled for each sample alone; `inputs` are those of several batches."""
        del inputs

    def withheld_facts(self, sampled: Any) -> Flags | None:
        """Return which facts of the ego graphs pass no messages, bool [F]; None if all do."""
        del sampled
        return None

    def names(self, sampled: Any, views: slice) -> NamesToEncode | None:
        """Return the names that the views of one batch add to those to encode."""
        del sampled, views
        return None

    @abstractmethod
    def collate(self, sampled: Any, piece: BatchSlice) -> ArrayTree[Ints]:
        """Return the part of one batch, from what `sample` returned."""

    def describe(self) -> dict[str, Any]:
        """Return JSON values from which `rebuild` makes the same part in another process."""
        kind = type(self)
        return {"class": f"{kind.__module__}:{kind.__qualname__}", "fields": asdict(self)}  # type: ignore[call-overload]


def rebuild(descriptions: Sequence[dict[str, Any]]) -> tuple[BatchPart, ...]:
    """Return the parts that `BatchPart.describe` described, in a process that imports no more than their modules."""
    parts = []
    for description in descriptions:
        module, _, name = description["class"].partition(":")
        parts.append(getattr(import_module(module), name)(**description["fields"]))
    return tuple(parts)
