"""Dual objective: a decoder writes a passage's facts from its text, and its text from the graph."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from bali_ds.objectives.dual_batch import PassagesWithFacts, PassagesWithFactsPart
from bali_ds.objectives.objective import EncodedBatch, EncodedViews, LanguageModel, Objective, Sums, concatenated

if TYPE_CHECKING:
    from torch import Tensor

    from bali_ds.config.objectives import DualConfig
    from bali_ds.objectives.dual_decoder import DualDecoder


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
        import torch

        from bali_ds.distributed import Ranks
        from bali_ds.losses.mutual_information import info_nce_bound

        graph = concatenated(encoded, "graph")
        begins = [0, *itertools.accumulate(len(views.graph) for views in encoded)]
        own = torch.cat([views.text_views + begin for views, begin in zip(encoded, begins, strict=False)])
        bound, cap, count = Ranks.of(None).all_reduce_sum(
            info_nce_bound(concatenated(encoded, "text"), graph, own, logit_scale)
        )
        return {"information_contrastive": bound / count.clamp(min=1), "information_cap": cap / count.clamp(min=1)}

    @property
    def _decoder(self) -> "DualDecoder":
        return cast("DualDecoder", self.module)

    def _own(self, encoded: EncodedBatch) -> PassagesWithFacts:
        own: PassagesWithFacts = encoded.batch.parts[self.name]
        return own
