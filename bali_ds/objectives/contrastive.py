"""Contrastive alignment of text and graph views, the objective of BALI."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from bali_ds.objectives.objective import EncodedViews, Objective, concatenated

if TYPE_CHECKING:
    import torch.distributed as dist
    from torch import Tensor

    from bali_ds.config.objectives import ContrastiveConfig


class ContrastiveAlignment(Objective):
    """Label-aware contrastive loss over the views of all ranks; see `bali_ds.losses.contrastive`."""

    name = "contrastive"
    in_evaluation = True
    settings: "ContrastiveConfig"

    def step_loss(self, encoded: Sequence[EncodedViews], logit_scale: "Tensor", logit_bias: "Tensor") -> "Tensor":
        """Return the loss over all text and graph views of the step."""
        import torch

        from bali_ds.losses.contrastive import contrastive_loss
        from bali_ds.losses.masked_language_model import mean_over_ranks

        loss = contrastive_loss(
            concatenated(encoded, "text"),
            concatenated(encoded, "graph"),
            logit_scale,
            query_concept_ids=concatenated(encoded, "text_concept_ids"),
            key_concept_ids=concatenated(encoded, "concept_ids"),
            kind=self.settings.kind,
            logit_bias=logit_bias,
            group=self._negatives,
            communication_dtype=torch.bfloat16 if self.settings.communication_dtype == "bf16" else None,
        )
        return loss if self._negatives is None else mean_over_ranks(loss, 1)

    @cached_property
    def _negatives(self) -> "dist.ProcessGroup | None":
        """The ranks that negatives come from: all, or this rank alone."""
        import torch.distributed as dist

        if self.settings.negatives == "all" or not dist.is_initialized():
            return None
        return dist.new_subgroups(1)[0]
