"""What a step does for each passage: counted on the shards of a recipe, or assumed for an abstract of PubMed."""

from dataclasses import dataclass
from pathlib import Path

from bali_ds.config import Recipe
from bali_ds.data.batch import Batch
from bali_ds.errors import InputError
from bali_ds.planning.flops import StepFlops
from bali_ds.planning.run_data import RunData

_SAMPLED_PASSAGES = 64


@dataclass(frozen=True)
class PassageCounts:
    """Means over passages: what a step does for each of them.

    Attributes:
        text_tokens, name_tokens: tokens of the passage, and of the names that the encoder reads for it.
        text_pairs, name_pairs: sums of the squared lengths of these sequences.
        labels: tokens that are predicted.
        views: concepts.
        nodes: of their ego graphs.
        stored_bytes: of the sample in its shard.
    """

    text_tokens: float
    name_tokens: float
    text_pairs: float
    name_pairs: float
    labels: float
    views: float
    nodes: float
    stored_bytes: float


# An abstract with its title; names of six tokens, each read once for all passages of a batch that share it.
ABSTRACT = PassageCounts(320, 60, 320**2, 10 * 6**2, 0.15 * 320, 10, 40, 4600)


def passage_flops(flops: StepFlops, counts: PassageCounts) -> float:
    """Return the FLOPs of the encoders for one passage, forward and backward."""
    text = flops.read(1, 0, learned=True) * counts.text_tokens + flops.read(0, 1, learned=True) * counts.text_pairs
    learned = flops.name_gradients
    names = (
        flops.read(1, 0, learned=learned) * counts.name_tokens + flops.read(0, 1, learned=learned) * counts.name_pairs
    )
    return text + names + flops.head * counts.labels + flops.graph * counts.nodes


def has_shards(recipe: Recipe) -> bool:
    """Return whether all shards of a recipe are in directories of this machine."""
    return all(Path(each).is_dir() for each in recipe.data.locations)


def counts_of_shards(recipe: Recipe) -> tuple[PassageCounts, int]:
    """Return the means over the first passages of the recipe's data, and how many there are to train on.

    Names are shared within these passages, 64 at most, as they are within a micro-batch.

    Raises:
        InputError: they cannot be read, or do not fit the recipe.
    """
    data = RunData.open(recipe)
    training = data.shards.size("train")
    if not training:
        raise InputError("data.shards: no passages to train on")
    sampled = min(_SAMPLED_PASSAGES, training)
    alone = recipe.model_copy(
        update={"batch": recipe.batch.model_copy(update={"passages": sampled, "micro_batches": 1})}
    )
    with data.loader(alone, 0, 1, workers=0) as loader:
        (batch,) = next(loader).micro_batches
    tars = sum(shard.bytes for shard in data.shards.shards)
    rows = sum(shard.samples for shard in data.shards.shards)
    return _means(batch, sampled, tars / rows), training


def _means(batch: Batch, passages: int, stored_bytes: float) -> PassageCounts:
    others = [batch.names.lengths, batch.neighborhoods.lengths]
    text, names = batch.passages.lengths, sum(int(each.sum()) for each in others)
    return PassageCounts(
        text_tokens=int(text.sum()) / passages,
        name_tokens=names / passages,
        text_pairs=int((text * text).sum()) / passages,
        name_pairs=sum(int((each * each).sum()) for each in others) / passages,
        labels=len(batch.labels) / passages,
        views=batch.num_views / passages,
        nodes=len(batch.node_names) / passages,
        stored_bytes=stored_bytes,
    )
