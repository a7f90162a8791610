"""FLOPs of a training step, counted from shapes, for model FLOPs utilization (MFU; Chowdhery et al., 2022)."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from bali_ds.data.batch import Batch, PackedSequences

# Peak dense half-precision FLOPs per second, by a part of the device name (vendors' data sheets).
PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10": 125e12,
    "L4": 121e12,
    "V100": 125e12,
    "MI300X": 1307e12,
    "MI250X": 383e12,
}
ENCODED = ("passages", "names", "neighborhoods")
"""The fields of a batch whose sequences the text encoder reads."""
# One multiplication and one addition each in the forward pass, for input gradients and for weight gradients.
_PER_WEIGHT = 6


@dataclass(frozen=True)
class StepFlops:
    """Counter of the FLOPs of forward and backward passes, without recomputation and padding.

    Attributes:
        encoder, head, graph: number of matrix elements of each part, without embeddings.
        layers, width: layers and hidden size of the text encoder.
    """

    encoder: int
    head: int
    graph: int
    layers: int
    width: int

    @classmethod
    def of(cls, model: nn.Module) -> "StepFlops":
        """Return the counter of an aligner whose weights ZeRO has not partitioned yet."""
        text = model.get_submodule("text")
        configuration: Any = text.get_submodule("encoder").config
        parts = dict(text.named_children()) | {"graph": dict(model.named_children()).get("graph", nn.Module())}
        return cls(
            encoder=_matrices(parts["encoder"]),
            head=_matrices(parts["head"]) if "head" in parts else 0,
            graph=_matrices(parts["graph"]),
            layers=int(configuration.num_hidden_layers),
            width=int(configuration.hidden_size),
        )

    def count(self, batch: Batch) -> tuple[int, int]:
        """Return the tokens that the text encoder reads in one micro-batch, and the FLOPs of its passes.

        Attention adds 12 FLOPs per layer, feature and pair of tokens (Q K^T and its product with V).
        """
        lengths = [pack.lengths for pack in text_encoder_packs(batch)]
        tokens = sum(int(each.sum()) for each in lengths)
        pairs = sum(int((each * each).sum()) for each in lengths)
        operations = _PER_WEIGHT * (
            self.encoder * tokens + self.head * batch.labels.shape[0] + self.graph * batch.node_names.shape[0]
        )
        return tokens, operations + 12 * self.layers * self.width * pairs


def text_encoder_packs(batch: Batch) -> list[PackedSequences]:
    """Return the sequences of a batch that the text encoder reads."""
    return [getattr(batch, field) for field in ENCODED]


def peak_of(device: str) -> float | None:
    """Return the peak half-precision FLOPs per second of a device by its name; None if it is unknown."""
    return next((peak for name, peak in PEAKS.items() if name in device), None)


def _matrices(module: nn.Module) -> int:
    embeddings = {id(each.weight) for each in module.modules() if isinstance(each, nn.Embedding)}
    matrices = (each for each in module.parameters() if each.ndim > 1 and id(each) not in embeddings)
    return sum(matrix.numel() for matrix in matrices)
