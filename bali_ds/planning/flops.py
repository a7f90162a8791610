"""Floating-point operations of a step, counted from shapes; for model FLOPs utilization (Chowdhery et al., 2022)."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from bali_ds.data.batch import Batch

# Dense peaks in half precision by what the device's name contains, in operations a second (vendors' data sheets).
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
"""The fields of a batch whose blocks the text encoder reads."""
# Forward, and backward for inputs and for weights; a multiplication and an addition each.
_PER_WEIGHT = 6


@dataclass(frozen=True)
class StepFlops:
    """Counts what forward and backward passes need, recomputation and padding left out.

    Attributes:
        encoder, head, graph: elements of the matrices of each part, embeddings left out.
        layers, width: of the text encoder, for attention.
    """

    encoder: int
    head: int
    graph: int
    layers: int
    width: int

    @classmethod
    def of(cls, model: nn.Module) -> "StepFlops":
        """Return the counter of an aligner, before ZeRO takes its weights apart."""
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
        """Return tokens that the encoder reads, and operations, of one micro-batch.

        Attention adds 12 operations per layer, feature and pair of tokens (Q K^T and its product with V).
        """
        blocks = [block for kind in ENCODED for block in getattr(batch, kind, ())]
        lengths = [block.lengths for block in blocks]
        tokens = sum(int(each.sum()) for each in lengths)
        pairs = sum(int((each * each).sum()) for each in lengths)
        operations = _PER_WEIGHT * (
            self.encoder * tokens + self.head * batch.labels.shape[0] + self.graph * batch.node_names.shape[0]
        )
        return tokens, operations + 12 * self.layers * self.width * pairs


def peak_of(device: str) -> float | None:
    """Return the peak in half precision of a device by its name, None where it is unknown."""
    return next((peak for name, peak in PEAKS.items() if name in device), None)


def _matrices(module: nn.Module) -> int:
    embeddings = {id(each.weight) for each in module.modules() if isinstance(each, nn.Embedding)}
    matrices = (each for each in module.parameters() if each.ndim > 1 and id(each) not in embeddings)
    return sum(matrix.numel() for matrix in matrices)
