"""Collation in the plain style: one sample, one concept, one name at a time, as each peer's user would write it."""

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence

from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.shards.shard_set import ShardSet

Sample = tuple[NDArray, NDArray, NDArray]


class PlainCollator:
    """Masks, draws neighbors and synonyms, pads; names are not told apart and there is one block of each."""

    def __init__(self, shards: ShardSet, graph: KnowledgeGraph, fan_out: int) -> None:
        self.tokenizer = shards.index["tokenizer"]
        self.special = torch.tensor(self.tokenizer["special_ids"])
        self.fan_out = fan_out
        tokens, offsets = shards.names
        self.names = [tokens[begin:end].tolist() for begin, end in pairwise(offsets.tolist())]
        self.name_offsets = graph.name_offsets.tolist()
        self.inverse = graph.num_relations

    def __call__(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        """Return a batch of samples."""
        ids = [torch.from_numpy(tokens.astype(np.int64)) for tokens, _, _ in samples]
        names: list[Any] = []
        edges: list[Any] = []
        relations: list[Any] = []
        spans: list[Any] = []
        for number, (_, mentions, stored) in enumerate(samples):
            neighbors: dict[int, list[tuple[int, int]]] = {}
            for concept, relation, neighbor in stored.tolist():
                neighbors.setdefault(concept, []).append((relation, neighbor))
            hidden = random.random() < 0.15
            for start, end, _ in mentions.tolist():
                spans.append((number, start, end))
                if hidden:
                    ids[number][start:end] = self.tokenizer["mask_id"]
            for concept in dict.fromkeys(mentions[:, 2].tolist()):
                own = neighbors.get(concept, [])
                drawn = random.sample(own, min(self.fan_out, len(own)))
                center = len(names)
                name = self.name(concept)
                if len(own) >= 2 and random.random() < 0.15:
                    name = [self.tokenizer["mask_id"]] * len(name)
                names.append(name)
                for relation, neighbor in drawn:
                    edges += [(len(names), center), (center, len(names))]
                    relations += [relation, (relation + self.inverse) % (2 * self.inverse)]
                    names.append(self.name(neighbor))
        inputs = pad_sequence(ids, batch_first=True, padding_value=self.tokenizer["pad_id"])
        inputs, labels = self.masked(inputs)
        cls, sep = self.tokenizer["cls_id"], self.tokenizer["sep_id"]
        padded = pad_sequence([torch.tensor([cls, *name, sep]) for name in names], batch_first=True)
        return {
            "input_ids": inputs,
            "attention_mask": (inputs != self.tokenizer["pad_id"]).long(),
            "labels": labels,
            "spans": torch.tensor(spans),
            "names": padded,
            "edge_index": torch.tensor(edges).reshape(-1, 2).T,
            "relations": torch.tensor(relations),
        }

    def name(self, concept: int) -> list[int]:
        """Draw one of a concept's names."""
        first, end = self.name_offsets[concept : concept + 2]
        return self.names[random.randrange(first, end)] if end > first else [self.tokenizer["mask_id"]]

    def masked(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mask tokens as Hugging Face's collator does; return inputs and labels."""
        labels = inputs.clone()
        chosen = (torch.rand(inputs.shape) < 0.15) & ~torch.isin(inputs, self.special)
        labels[~chosen] = -100
        fate = torch.rand(inputs.shape)
        inputs = inputs.masked_fill(chosen & (fate < 0.8), self.tokenizer["mask_id"])
        replace = chosen & (fate >= 0.9)
        inputs[replace] = torch.randint(5, self.tokenizer["vocab_size"], (int(replace.sum()),))
        return inputs, labels
