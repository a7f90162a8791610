"""Batches: numpy arrays in the loader, tensors in the model; this module imports no torch by itself.

A loader worker makes batches of numpy arrays and stays without torch; `as_tensors` turns them into tensors that share
their memory. The classes are the same on both sides: `Batch` is a batch of tensors, `Batch[Ints]` one of arrays.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Generic, Self

from bali_ds.data.sequences import Ints

if TYPE_CHECKING:
    import torch
    from typing_extensions import TypeVar

    Array = TypeVar("Array", default=torch.Tensor)
else:
    from typing import TypeVar

    Array = TypeVar("Array")


class ArrayTree(Generic[Array]):
    """Base of dataclasses of arrays: each field is an array, another such dataclass, or a tuple or dict of them.

    In torch they are pytree nodes, so that `torch.utils.checkpoint` finds the devices of their tensors and replays the
    random numbers of these devices.
    """

    def map(self, change: Callable[[Any], Any]) -> Any:
        """Return the same tree with every array replaced by `change(array)`."""
        return type(self)(**{field.name: _mapped(getattr(self, field.name), change) for field in fields(self)})  # type: ignore[arg-type]

    def to(self, device: "torch.device | str") -> Self:
        """Return the same tree with every tensor on `device`."""
        moved: Self = self.map(lambda tensor: tensor.to(device, non_blocking=True))
        return moved

    def pin_memory(self) -> Self:
        """Return the same tree with every tensor in page-locked memory."""
        pinned: Self = self.map(lambda tensor: tensor.pin_memory())
        return pinned


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, ArrayTree):
        return value.map(change)
    if isinstance(value, tuple):
        return tuple(_mapped(item, change) for item in value)
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    return change(value)


@dataclass(frozen=True)
class LengthBucket(ArrayTree[Array]):
    """Sequences of similar length, padded to the longest of them.

    Attributes:
        input_ids: int64 [n, L], n >= 1 and L >= 2, special tokens included, padded with the pad token on the right.
        lengths: int64 [n], tokens without padding.
    """

    input_ids: Array
    lengths: Array

    @property
    def attention_mask(self: "LengthBucket[torch.Tensor]") -> "torch.Tensor":
        """Int64 [n, L], 1 at tokens and 0 at padding."""
        import torch

        positions = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)
        mask: torch.Tensor = (positions < self.lengths[:, None]).long()
        return mask


@dataclass(frozen=True)
class Batch(ArrayTree[Array]):
    """One micro-batch of one rank.

    The number of length buckets of each kind is the same on every rank and in every step, so that every module is
    called equally often; a bucket that would be empty holds one dummy sequence that nothing refers to. "Flat" token
    positions count through the buckets in order: bucket 0 row 0, bucket 0 row 1, ..., padding included.

    A view is one concept of one passage. It is seen twice: as text (the tokens of all its mentions in the passage)
    and as graph (the ego graph of the concept and its sampled neighbors).

    B passages, V views, N nodes, E edges, K labeled tokens, P mention tokens. Where graph views are linearized there
    are no names, nodes and edges; where they are ego graphs, no neighborhoods; where no objective needs graph views,
    neither.

    Attributes:
        passages: buckets of masked passages, B rows in all (dummies aside).
        names: buckets of distinct concept names; the node names refer to their rows.
        labeled_tokens: int64 [K], flat positions in `passages` that masked language modeling predicts.
        labels: int64 [K], the true tokens at these positions.
        mention_tokens: int64 [P], flat positions in `passages` of the tokens of mentions.
        mention_views: int64 [P], the text view of each mention token, ascending; every text view has at least one.
        text_views: int64 [T], ascending, the view of each text view: one for all mentions of a concept in a passage,
            so 0 to V - 1, or one for each mention.
        concept_ids: int64 [V], the graph's concept id of each view.
        node_names: int64 [N], the row in `names` (counted through the buckets) of each node's name; or, where name
            vectors are cached, the name id, or num_names + k for a name hidden behind k masks; or, where concepts have
            learned embeddings, the concept id, or num_concepts for a hidden concept.
        edge_index: int64 [2, E], source and target node of each message; facts run both ways.
        edge_relations: int64 [E], relation id of each message, read from its target: the neighbor list's own id
            for neighbor -> concept, its inverse for concept -> neighbor.
        targets: int64 [V], the node that is each view's concept.
        sample_rows: int64 [B], rows in the shard set's sample table, in the order of the global batch.
        neighborhoods: buckets of linearized neighborhoods, V rows in all (dummies aside).
        neighborhood_rows: int64 [V], the row of each view in `neighborhoods`, counted through the buckets.
        graph_labeled_tokens: int64, flat positions in `neighborhoods` that masked language modeling predicts.
        graph_labels: int64, the true tokens at these positions.
        parts: what single objectives add, each a dataclass of its own, by the objective's name in the recipe.
    """

    passages: tuple[LengthBucket[Array], ...]
    names: tuple[LengthBucket[Array], ...]
    labeled_tokens: Array
    labels: Array
    mention_tokens: Array
    mention_views: Array
    text_views: Array
    concept_ids: Array
    node_names: Array
    edge_index: Array
    edge_relations: Array
    targets: Array
    sample_rows: Array
    neighborhoods: tuple[LengthBucket[Array], ...]
    neighborhood_rows: Array
    graph_labeled_tokens: Array
    graph_labels: Array
    parts: dict[str, Any]

    @property
    def num_views(self) -> int:
        """How many (passage, concept) pairs the batch holds."""
        return len(self.concept_ids)  # type: ignore[arg-type]


def as_tensors(batch: Batch[Ints]) -> Batch:
    """Return a batch of numpy arrays as tensors that share their memory."""
    import torch

    _register_pytrees()
    tensors: Batch = batch.map(torch.from_numpy)
    return tensors


def _register_pytrees() -> None:
    """Make every class of array trees, those of objectives included, a pytree node of torch."""
    from torch.utils import _pytree

    for kind in ArrayTree.__subclasses__():
        if kind not in _pytree.SUPPORTED_NODES:
            _pytree.register_dataclass(kind)
