"""The contrastive objective: one public function."""

from bali_ds.objective.contrastive.loss import contrastive_loss

__all__ = ["contrastive_loss"]
