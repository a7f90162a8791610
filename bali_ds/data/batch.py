"""Batches: numpy arrays in the loader, tensors in the model; this module imports no torch by itself.

A loader worker makes batches of numpy arrays and stays without torch; `as_tensors` turns them into tensors that share
their memory. The classes are the same on both sides: `Batch` is a batch of tensors, `Batch[Ints]` one of arrays.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
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
        return self._mapped(lambda array, _: change(array))

    def to(self, device: "torch.device | str") -> Self:
        """Return the same tree with every tensor on `device`, except fields that stay in host memory."""
        moved: Self = self._mapped(lambda tensor, host: tensor if host else tensor.to(device, non_blocking=True))
        return moved

    def pin_memory(self) -> Self:
        """Return the same tree with every tensor in page-locked memory."""
        pinned: Self = self.map(lambda tensor: tensor.pin_memory())
        return pinned

    def _mapped(self, change: Callable[[Any, bool], Any]) -> Any:
        """Return the same tree with every array replaced by `change(array, whether it stays in host memory)`."""
        names = {each.name: "host" in each.metadata for each in fields(self)}  # type: ignore[arg-type]
        return type(self)(**{name: _mapped(getattr(self, name), change, host) for name, host in names.items()})


def _mapped(value: Any, change: Callable[[Any, bool], Any], host: bool) -> Any:
    if isinstance(value, ArrayTree):
        return value._mapped(change)
    if isinstance(value, tuple):
        return tuple(_mapped(item, change, host) for item in value)
    if isinstance(value, dict):
        return {key: _mapped(item, change, host) for key, item in value.items()}
    return change(value, host)


@dataclass(frozen=True)
class PackedSequences(ArrayTree[Array]):
    """Token sequences one after the other, shortest first, without padding; T tokens in n sequences.

    Attributes:
        input_ids: int64 [T], special tokens included.
        positions: int64 [T], the position of each token in its sequence, from 0.
        offsets: int64 [n + 1], where each sequence begins and ends.
        lengths: int64 [n], ascending; always in host memory, so that sizes are known without waiting for a device.
    """

    input_ids: Array
    positions: Array
    offsets: Array
    lengths: Array = field(metadata={"host": True})


@dataclass(frozen=True)
class PaddedSequences(ArrayTree[Array]):
    """Token sequences as the rows of a matrix, padded to the longest of them.

    Attributes:
        input_ids: int64 [n, L], n >= 1 and L >= 2, special tokens included, padded with the pad token on the right.
        lengths: int64 [n], tokens without padding.
    """

    input_ids: Array
    lengths: Array

    @property
    def mask(self: "PaddedSequences[torch.Tensor]") -> "torch.Tensor":
        """Bool [n, L], true at tokens and false at padding."""
        import torch

        positions = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)
        return positions < self.lengths[:, None]


@dataclass(frozen=True)
class Batch(ArrayTree[Array]):
    """One micro-batch of one rank.

    Whether there are sequences of a kind is the same on every rank and in every step, so that every module is called
    equally often: where a batch has none of a kind that others have, one dummy sequence stands in that nothing refers
    to. "Rows" count the sequences of a kind, and "flat" positions their tokens, in the order in which they are packed.

    A view is one concept of one passage. It is seen twice: as text (the tokens of all its mentions in the passage)
    and as graph (the ego graph of the concept and its sampled neighbors).

    B passages, V views, N nodes, E edges, K labeled tokens, P mention tokens. Where graph views are linearized there
    are no names, nodes and edges; where they are ego graphs, no neighborhoods; where no objective needs graph views,
    neither.

    Attributes:
        passages: B masked passages.
        names: distinct concept names; the node names refer to their rows.
        labeled_tokens: int64 [K], flat positions in `passages` that masked language modeling predicts.
        labels: int64 [K], the true tokens at these positions.
        mention_tokens: int64 [P], flat positions in `passages` of the tokens of mentions.
        mention_views: int64 [P], the text view of each mention token, ascending; every text view has at least one.
        text_views: int64 [T], ascending, the view of each text view: one for all mentions of a concept in a passage,
            so 0 to V - 1, or one for each mention.
        concept_ids: int64 [V], the graph's concept id of each view.
        node_names: int64 [N], the row in `names` of each node's name; or, where name vectors are cached, the name
            id, or num_names + k for a name hidden behind k masks; or, where concepts have learned embeddings, the
            concept id, or num_concepts for a hidden concept.
        edge_index: int64 [2, E], source and target node of each message; facts run both ways.
        edge_relations: int64 [E], relation id of each message, read from its target: the neighbor list's own id
            for neighbor -> concept, its inverse for concept -> neighbor.
        targets: int64 [V], the node that is each view's concept.
        sample_rows: int64 [B], rows in the shard set's sample table, in the order of the global batch.
        neighborhoods: V linearized neighborhoods.
        neighborhood_rows: int64 [V], the row of each view in `neighborhoods`.
        graph_labeled_tokens: int64, flat positions in `neighborhoods` that masked language modeling predicts.
        graph_labels: int64, the true tokens at these positions.
        parts: what single objectives add, each a dataclass of its own, by the objective's name in the recipe.
    """

    passages: PackedSequences[Array]
    names: PackedSequences[Array]
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
    neighborhoods: PackedSequences[Array]
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
