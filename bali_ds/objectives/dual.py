"""Dual objective: a decoder writes a passage's facts from its text, and its text from the graph."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from bali_ds.data.batch import Array, ArrayTree, PaddedSequences
from bali_ds.data.batch_part import BatchPart, BatchSlice, SampledInputs
from bali_ds.data.linearized import facts_of, linearize, name_sequences
from bali_ds.data.packing import pad
from bali_ds.data.sequences import Ints, TokenSequences, starts
from bali_ds.objectives.objective import EncodedBatch, EncodedViews, LanguageModel, Objective, Sums, concatenated

if TYPE_CHECKING:
    from torch import Tensor

    from bali_ds.config.objectives import DualConfig
    from bali_ds.objectives.dual_decoder import DualDecoder


@dataclass(frozen=True)
class PassagesWithFacts(ArrayTree[Array]):
    """What the decoder reads and writes of the B passages of a batch.

    Attributes:
        originals: the passages without masks, in order.
        original_positions: int64 [B, L], the flat position in `Batch.passages` of each of their tokens.
        facts: the facts of each passage as text, B rows.
        passage_nodes: int64 [B, M], M >= 1, the nodes of each passage, then -1.
    """

    originals: PaddedSequences[Array]
    original_positions: Array
    facts: PaddedSequences[Array]
    passage_nodes: Array


@dataclass(frozen=True)
class PassagesWithFactsPart(BatchPart):
    """Adds the passages without masks, and their facts as text, every concept by its preferred name."""

    name = "dual"
    content = PassagesWithFacts
    writes_facts = True

    def sample(self, inputs: SampledInputs) -> TokenSequences:
        """Return the facts of each sample as text."""
        source, ego_graphs = inputs.source, inputs.ego_graphs
        graph, vocabulary = source.graph, source.vocabulary
        begins, ends = (graph.name_offsets[ego_graphs.concept_ids + end].astype(np.int64) for end in (0, 1))
        preferred = np.where(begins < ends, begins, -1)
        shown = np.zeros(preferred.size, bool)
        nodes = name_sequences(preferred, shown, source.shards.names, vocabulary.mask_id)
        facts = facts_of(ego_graphs, graph.num_relations, inputs.views.samples)
        count = inputs.samples.sample_rows.size
        return linearize(facts, nodes, source.relation_names, None, count, source.graph_tokens, vocabulary)

    def collate(self, sampled: TokenSequences, piece: BatchSlice) -> PassagesWithFacts[Ints]:
        """Return the passages and facts of one batch."""
        inputs, first, last = piece.inputs, piece.samples.start, piece.samples.stop
        original = TokenSequences(inputs.samples.tokens, inputs.samples.lengths).part(first, last)
        originals, facts = (
            pad(sequences, inputs.source.vocabulary.pad_id) for sequences in (original, sampled.part(first, last))
        )
        places = np.minimum(np.arange(originals.input_ids.shape[1]), original.lengths[:, None] - 1)
        samples_of_nodes = inputs.views.samples[inputs.ego_graphs.views[piece.nodes]]
        nodes = np.bincount(samples_of_nodes - first, minlength=last - first)
        slots = np.arange(max(int(nodes.max(initial=0)), 1))
        return PassagesWithFacts(
            originals=originals,
            original_positions=piece.passages.origins[:, None] + places,
            facts=facts,
            passage_nodes=np.where(slots < nodes[:, None], starts(nodes)[:, None] + slots, -1),
        )


class Dual(Objective):
    """Cross-entropies of both directions and of each modality alone; see `bali_ds.objectives.dual_decoder`."""

    name = "dual"
    settings: "DualConfig"

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each loss; information is only logged."""
        from bali_ds.objectives.dual_decoder import loss_weights

        return loss_weights(self.settings)

    def batch_part(self) -> PassagesWithFactsPart:
        """Return the part that adds passages without masks and their facts."""
        return PassagesWithFactsPart()

    def build(self, text: LanguageModel, *, num_relations: int, graph_tokens: int) -> "DualDecoder":  # noqa: ARG002
        """Return the decoder.

        Raises:
            InputError: the encoder's sizes and the decoder's do not fit together.
        """
        from bali_ds.objectives.dual_decoder import DualDecoder

        longest = max(int(text.encoder.config.max_position_embeddings), graph_tokens)
        return DualDecoder(self.settings, text, longest)

    def graph_sums(self, encoded: EncodedBatch) -> Sums:
        """Return the sums of all losses and information."""
        assert encoded.nodes is not None
        return self._decoder(encoded.text, encoded.hidden, encoded.nodes, self._own(encoded))

    def generate(self, encoded: EncodedBatch) -> "tuple[Tensor, Tensor]":
        """Return what the decoder writes of each passage: its facts from its text, and its text from the graph.

        Both int64 [B, L], as long as the longest true one of the batch, the most likely token each time. Which modules
        are called depends on the batch's shape alone.
        """
        from bali_ds.objectives.dual_decoder import FACTS, PASSAGES

        decoder, own, nodes = self._decoder, self._own(encoded), encoded.nodes
        assert nodes is not None
        start = int(own.originals.input_ids[0, 0])
        text, graph = decoder.seen_text(encoded.hidden, own), decoder.seen_graph(nodes, own)
        return (
            decoder.generate(encoded.text, *text, FACTS, start, own.facts.input_ids.shape[1]),
            decoder.generate(encoded.text, *graph, PASSAGES, start, own.originals.input_ids.shape[1]),
        )

    def metrics(self, encoded: Sequence[EncodedViews], logit_scale: "Tensor") -> "dict[str, Tensor]":
        """Return InfoNCE's bound on the mutual information of the views, and the bound's cap, in nats."""
        from bali_ds.distributed import Ranks
        from bali_ds.losses.mutual_information import info_nce_bound

        bound, cap, count = Ranks.of(None).all_reduce_sum(
            info_nce_bound(
                concatenated(encoded, "text"),
                concatenated(encoded, "graph"),
                logit_scale,
                concatenated(encoded, "text_concept_ids"),
                concatenated(encoded, "concept_ids"),
            )
        )
        return {"information_contrastive": bound / count.clamp(min=1), "information_cap": cap / count.clamp(min=1)}

    @property
    def _decoder(self) -> "DualDecoder":
        return cast("DualDecoder", self.module)

    def _own(self, encoded: EncodedBatch) -> PassagesWithFacts:
        own: PassagesWithFacts = encoded.batch.parts[self.name]
        return own
