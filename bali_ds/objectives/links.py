"""Link prediction: the other concept of a held-out fact, predicted from the vectors of both."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bali_ds.data.batch import Array, ArrayTree
from bali_ds.data.batch_part import BatchPart, BatchSlice, SampledInputs
from bali_ds.data.ego_graphs import EgoGraphs
from bali_ds.data.sequences import Flags, Ints, starts
from bali_ds.objectives.objective import EncodedBatch, LanguageModel, Objective, Sums
from bali_ds.randomness import Keys, below, derive

if TYPE_CHECKING:
    from torch import nn

    from bali_ds.config.objectives import LinkPredictionConfig


@dataclass(frozen=True)
class HeldOutFacts(ArrayTree[Array]):
    """Facts of a batch that pass no messages.

    Attributes:
        facts: int64 [4, F]: node, relation and other node, read like a message to the first, and the other node's
            concept id.
    """

    facts: Array


class SampledHeldOutFacts(NamedTuple):
    """Ego graphs, and which of their facts are held out, bool [F]."""

    ego_graphs: EgoGraphs
    held_out: Flags


@dataclass(frozen=True)
class HeldOutFactsPart(BatchPart):
    """Holds out one fact of each ego graph that has two or more; one more neighbor is sampled in its place."""

    name = "link_prediction"
    content = HeldOutFacts
    extra_neighbors = 1

    def sample(self, inputs: SampledInputs) -> SampledHeldOutFacts:
        """Return which facts are held out."""
        return SampledHeldOutFacts(inputs.ego_graphs, hold_out(inputs.ego_graphs, inputs.view_keys))

    def withheld_facts(self, sampled: SampledHeldOutFacts) -> Flags:
        """Return the held-out facts."""
        return sampled.held_out

    def collate(self, sampled: SampledHeldOutFacts, piece: BatchSlice) -> HeldOutFacts[Ints]:
        """Return the held-out facts of one batch."""
        ego_graphs, first_node = sampled.ego_graphs, piece.nodes.start
        held_out = piece.facts[sampled.held_out[piece.facts]]
        neighbors, centers = ego_graphs.edge_index[:, held_out]
        return HeldOutFacts(
            np.stack(
                [
                    centers - first_node,
                    ego_graphs.edge_relations[held_out],
                    neighbors - first_node,
                    ego_graphs.concept_ids[neighbors],
                ]
            )
        )


def hold_out(ego_graphs: EgoGraphs, keys: Keys) -> Flags:
    """Return which of the sampled facts is to be predicted: one of each ego graph that has two or more; bool [F]."""
    facts = ego_graphs.num_facts
    per_view = np.bincount(ego_graphs.views[ego_graphs.edge_index[0, :facts]], minlength=ego_graphs.targets.size)
    chosen = starts(per_view) + below(derive(keys, "held out"), per_view)
    held_out = np.zeros(facts, bool)
    held_out[chosen[per_view > 1]] = True
    return held_out


class LinkPredictionObjective(Objective):
    """Cross-entropy of the other concept of each held-out fact; see `bali_ds.losses.link_prediction`."""

    name = "link_prediction"
    settings: "LinkPredictionConfig"

    def batch_part(self) -> HeldOutFactsPart:
        """Return the part that holds out facts."""
        return HeldOutFactsPart()

    def build(self, text: LanguageModel, *, num_relations: int, graph_tokens: int) -> "nn.Module":  # noqa: ARG002
        """Return relation embeddings of its own."""
        from bali_ds.losses.link_prediction import LinkPrediction

        return LinkPrediction(self.settings.kind, text.width, num_relations)

    def graph_sums(self, encoded: EncodedBatch) -> Sums:
        """Return the sum over the held-out facts."""
        assert self.module is not None
        own: HeldOutFacts = encoded.batch.parts[self.name]
        return {self.name: self.module(encoded.nodes, own.facts)}
