"""A toy objective: how far the vectors of a passage's first concepts are from a learned point, by the passage's length.

All that a new objective consists of is here: its section of the recipe, its batch part and its class.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bali_ds.config.objectives import ObjectiveConfig, ObjectiveSection
from bali_ds.data.batch import Array, ArrayTree
from bali_ds.data.batch_part import BatchPart
from bali_ds.objectives.objective import Objective


class ToyConfig(ObjectiveSection):
    """The settings of the toy objective."""

    needs = frozenset({"nodes"})
    scale: float = 1.0


class ToyObjectiveConfig(ObjectiveConfig):
    """All objectives and the toy: in `bali_ds/config/objectives.py` this is one line of `ObjectiveConfig`."""

    toy: ToyConfig = ToyConfig()


@dataclass(frozen=True)
class FirstNodes(ArrayTree[Array]):
    """The node of the first view of each passage that has one, int64 [n], and the passage's length, int64 [n]."""

    nodes: Array
    lengths: Array


@dataclass(frozen=True)
class FirstNodesPart(BatchPart):
    """Finds the first view of each passage."""

    name = "toy"
    content = FirstNodes

    scale: float = 1.0

    def sample(self, inputs):
        samples, first = np.unique(inputs.views.samples, return_index=True)
        return first, (self.scale * inputs.samples.lengths[samples]).astype(np.int64)

    def collate(self, sampled, piece):
        first, lengths = sampled
        own = slice(*np.searchsorted(first, (piece.views.start, piece.views.stop)))
        nodes = piece.inputs.ego_graphs.targets[first[own]] - piece.nodes.start
        return FirstNodes(nodes, lengths[own])


class ToyObjective(Objective):
    """The toy's module and loss."""

    name: ClassVar[str] = "toy"
    settings: ToyConfig

    def batch_part(self):
        return FirstNodesPart(self.settings.scale)

    def build(self, text, **_sizes):
        from torch import nn

        return nn.Linear(text.width, 1)

    def graph_sums(self, encoded):
        own = encoded.batch.parts[self.name]
        losses = (self.module(encoded.nodes[own.nodes]).squeeze(1).float() - 1 / own.lengths).square()
        return {self.name: (losses.sum(), len(losses))}
