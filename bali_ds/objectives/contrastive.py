"""Contrastive alignment of text and graph views, the objective of BALI."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bali_ds.objectives.alignment_views import AlignmentViews, AlignmentViewsPart
from bali_ds.objectives.objective import (
    EncodedBatch,
    EncodedViews,
    LanguageModel,
    Objective,
    Vectors,
    concatenated,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from bali_ds.config.objectives import ContrastiveConfig
    from bali_ds.distributed import Ranks


class ContrastiveAlignment(Objective):
    """Label-aware contrastive loss over the views of all ranks; see `bali_ds.losses.contrastive`."""

    name = "contrastive"
    in_evaluation = True
    settings: "ContrastiveConfig"

    def batch_part(self) -> AlignmentViewsPart | None:
        """Return the part that samples further views, if the settings ask for any."""
        settings = self.settings
        if not settings.reads_names:
            return None
        wanted = settings.further_views
        return AlignmentViewsPart("mention" in wanted, "name" in wanted, settings.other_concepts, settings.siblings)

    def keep(self, encoded: EncodedBatch) -> Vectors | None:
        """Return the further views of a training batch, float32 [A + O, d], and their concepts."""
        own: AlignmentViews | None = encoded.batch.parts.get(self.name)
        if own is None:
            return None
        views = encoded.names[own.rows]
        if self.settings.drawn_concepts:
            import torch

            assert encoded.encode_nodes is not None
            nodes = encoded.encode_nodes(encoded.names[own.node_rows], own.edge_index, own.edge_relations)
            views = torch.cat([views, nodes[own.targets].float()])
        return views, own.concept_ids

    def build(self, text: LanguageModel, *, num_relations: int, graph_tokens: int) -> None:
        """Keep the text encoder, whose dtype is the run's precision: views are float32 after pooling."""
        del num_relations, graph_tokens
        self._encoder = text.encoder

    def step_loss(self, encoded: Sequence[EncodedViews], logit_scale: "Tensor", logit_bias: "Tensor") -> "Tensor":
        """Return the loss over all views of the step."""
        import torch

        from bali_ds.losses.contrastive import contrastive_loss
        from bali_ds.losses.masked_language_model import mean_over_ranks

        text = concatenated(encoded, "text")
        further = [views.kept[self.name] for views in encoded if self.name in views.kept]
        loss = contrastive_loss(
            text,
            torch.cat([concatenated(encoded, "graph"), *(views for views, _ in further)]),
            logit_scale,
            query_concept_ids=concatenated(encoded, "text_concept_ids"),
            key_concept_ids=torch.cat([concatenated(encoded, "concept_ids"), *(ids for _, ids in further)]),
            kind=self.settings.kind,
            logit_bias=logit_bias,
            group=self._compared(text.device),
            communication=self.settings.communication,
            communication_dtype=self.communication_dtype(text.device),
        )
        return loss if self.settings.negatives == "all" else mean_over_ranks(loss, 1)

    def communication_dtype(self, device: "torch.device") -> "torch.dtype | None":
        """Return the dtype in which views on a device are held and sent; None for their own."""
        import torch

        on_gpu, model_in_bf16 = device.type == "cuda", self._encoder.dtype == torch.bfloat16
        return torch.bfloat16 if self.settings.in_bf16(on_gpu=on_gpu, model_in_bf16=model_in_bf16) else None

    def _compared(self, device: "torch.device") -> "Ranks":
        """Return the ranks whose views are compared: all, those of this node, or this rank, which needs no group."""
        from bali_ds.distributed import Ranks, all_ranks

        if self.settings.negatives == "rank":
            return Ranks(0, 1)
        ranks = all_ranks(device)
        if self.settings.negatives == "all":
            return ranks
        assert ranks.node is not None  # a run with hosts of different sizes is refused at its start
        return ranks.node
