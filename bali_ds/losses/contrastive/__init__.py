"""Contrastive losses over the views of all ranks; one public function."""

from bali_ds.losses.contrastive.api import contrastive_loss

__all__ = ["contrastive_loss"]
