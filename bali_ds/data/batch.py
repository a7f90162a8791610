"""What the loader hands to the model: tensors alone, and where each comes from."""

from dataclasses import dataclass, fields
from typing import Self

import torch


class _Tensors:
    """Moves every tensor of a dataclass, nested ones included."""

    def to(self, device: torch.device | str) -> Self:
        """Return the same value with every tensor on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """Return the same value with every tensor in page-locked memory."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change) -> Self:  # type: ignore[no-untyped-def]
        def mapped(value):  # type: ignore[no-untyped-def]
            if isinstance(value, torch.Tensor):
                return change(value)
            if isinstance(value, tuple):
                return tuple(mapped(item) for item in value)
            return value._map(change) if isinstance(value, _Tensors) else value

        return type(self)(**{field.name: mapped(getattr(self, field.name)) for field in fields(self)})  # type: ignore[arg-type]


@dataclass(frozen=True)
class TokenBlock(_Tensors):
    """Sequences of similar length, padded to the longest of them.

    Attributes:
        input_ids: int64 [n, L], n >= 1 and L >= 2, special tokens included, padded with the pad token on the right.
        lengths: int64 [n], tokens without padding.
    """

    input_ids: torch.Tensor
    lengths: torch.Tensor

    @property
    def attention_mask(self) -> torch.Tensor:
        """Int64 [n, L], 1 at tokens and 0 at padding."""
        positions = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)
        return (positions < self.lengths[:, None]).long()


@dataclass(frozen=True)
class Batch(_Tensors):
    """One micro-batch of one rank.

    The number of blocks of each kind is the same on every rank and in every step, so that every module is called
    equally often; a block that would be empty holds one dummy sequence that nothing refers to. "Flat" token positions
    count through the blocks in order: block 0 row 0, block 0 row 1, ..., padding included.

    A view is one concept of one passage. It is seen twice: as text (the tokens of all its mentions in the passage)
    and as graph (a star of the concept and its drawn neighbors).

    B passages, V views, N nodes, E edges, K labeled tokens, P mention tokens. Where graph views are linearized there
    are no names, nodes and edges; where they are stars, no neighborhoods; where nothing asks for graph views, neither.

    Attributes:
        passages: blocks of masked passages, B rows in all (dummies aside).
        names: blocks of distinct concept names; the node names refer to their rows.
        labeled_tokens: int64 [K], flat positions in `passages` that masked language modeling predicts.
        labels: int64 [K], the token ids that stood there.
        mention_tokens: int64 [P], flat positions in `passages` of the tokens of mentions.
        mention_views: int64 [P], the text view of each, ascending; every one has at least one.
        text_views: int64 [T], ascending, the view of each text view: one for all mentions of a concept in a passage,
            so 0 to V - 1, or one for each mention.
        concept_ids: int64 [V], the graph's concept id of each view.
        node_names: int64 [N], the row in `names` (counted through the blocks) of each node's name; or, where all names
            are in a table and none is here, the name id, or num_names + k for a name hidden behind k masks; or, where
            concepts have embeddings in place of names, the concept id, or num_concepts for a hidden one.
        edge_index: int64 [2, E], source and target node of each message; facts run both ways.
        edge_relations: int64 [E], relation id of each message, read from its target: the neighbor list's own id
            for neighbor -> concept, its inverse for concept -> neighbor.
        targets: int64 [V], the node that is each view's concept.
        sample_ids: int64 [B], rows in the shard set's sample table, in the order of the global batch.
        neighborhoods: blocks of linearized neighborhoods, V rows in all (dummies aside).
        neighborhood_rows: int64 [V], the row of each view in `neighborhoods`, counted through the blocks.
        graph_labeled_tokens: int64, flat positions in `neighborhoods` that masked language modeling predicts.
        graph_labels: int64, the token ids that stood there.
        held_out: int64 [4, F], facts that are no messages: node, relation and other node, read like a message to the
            first, and the other node's concept.
        synonyms: int64 [2, S], rows in `names` of two names of one concept.
        synonym_ids: int64 [S], that concept.
        originals: one block of the passages without masks, B rows in order; none where no decoder is trained.
        original_positions: int64 [B, L], the flat position in `passages` of each of its tokens.
        triples: one block of the facts of each passage as text, B rows.
        passage_nodes: int64 [B, M], the nodes of each passage, then -1.
    """

    passages: tuple[TokenBlock, ...]
    names: tuple[TokenBlock, ...]
    labeled_tokens: torch.Tensor
    labels: torch.Tensor
    mention_tokens: torch.Tensor
    mention_views: torch.Tensor
    text_views: torch.Tensor
    concept_ids: torch.Tensor
    node_names: torch.Tensor
    edge_index: torch.Tensor
    edge_relations: torch.Tensor
    targets: torch.Tensor
    sample_ids: torch.Tensor
    neighborhoods: tuple[TokenBlock, ...]
    neighborhood_rows: torch.Tensor
    graph_labeled_tokens: torch.Tensor
    graph_labels: torch.Tensor
    held_out: torch.Tensor
    synonyms: torch.Tensor
    synonym_ids: torch.Tensor
    originals: tuple[TokenBlock, ...]
    original_positions: torch.Tensor
    triples: tuple[TokenBlock, ...]
    passage_nodes: torch.Tensor

    @property
    def num_views(self) -> int:
        """How many (passage, concept) pairs the batch holds."""
        return int(self.concept_ids.shape[0])
