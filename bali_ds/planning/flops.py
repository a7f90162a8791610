"""FLOPs of a training step, counted from shapes, for model FLOPs utilization (MFU; Chowdhery et al., 2022)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bali_ds.data.batch import Batch, PackedSequences

# Peak dense half-precision FLOPs per second, by a part of the device name; of two that fit, the first (data sheets of
# the vendors, without sparsity).
PEAKS = {
    "B200": 2250e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L4": 121e12,
    "V100": 125e12,
    "MI300X": 1307e12,
    "MI250X": 383e12,
}
ENCODED = ("passages", "names", "neighborhoods")
"""The fields of a batch whose sequences the text encoder reads."""
_PASS = 2  # one multiplication and one addition for each weight and token
_ATTENTION = 4  # Q K^T and its product with V, for each layer, feature and pair of tokens


@dataclass(frozen=True)
class StepFlops:
    """Counter of the FLOPs of forward and backward passes, without recomputation and padding.

    Attributes:
        encoder: FLOPs of the text encoder's matrices for each token that is read with gradients.
        encoder_forward: the same for a token that is read without.
        head: of the head, for each token that is predicted.
        graph: of the graph encoder, for each node.
        layers, width: layers and hidden size of the text encoder.
        name_gradients: whether names and neighborhoods are read with gradients.
    """

    encoder: int
    encoder_forward: int
    head: int
    graph: int
    layers: int
    width: int
    name_gradients: bool

    @classmethod
    def of(cls, model: nn.Module) -> "StepFlops":
        """Return the counter of an aligner."""
        text = model.get_submodule("text")
        parts = dict(text.named_children()) | {"graph": dict(model.named_children()).get("graph", nn.Module())}
        encoder, head = parts["encoder"], parts.get("head", nn.Module())
        configuration: Any = encoder.config
        learns = any(parameter.requires_grad for parameter in encoder.parameters())
        name_gradients = getattr(model, "names", "gradient") == "gradient"
        return cls(
            encoder=_flops(encoder),
            encoder_forward=sum(_PASS * _size(each) for each in _matrices(encoder)),
            head=_flops(head, learns_before=learns),
            graph=_flops(parts["graph"], learns_before=learns and name_gradients),
            layers=int(configuration.num_hidden_layers),
            width=int(configuration.hidden_size),
            name_gradients=name_gradients,
        )

    def count(self, batch: Batch) -> tuple[int, int]:
        """Return the tokens that the text encoder reads in one micro-batch, and the FLOPs of its passes."""
        tokens, operations = 0, self.head * batch.labels.shape[0] + self.graph * batch.node_names.shape[0]
        for field in ENCODED:
            lengths = getattr(batch, field).lengths
            own, pairs = int(lengths.sum()), int((lengths * lengths).sum())
            tokens += own
            operations += self.read(own, pairs, learned=field == "passages" or self.name_gradients)
        return tokens, operations

    def read(self, tokens: int, pairs: int, *, learned: bool) -> int:
        """Return the FLOPs of reading sequences.

        Args:
            tokens: of all of them.
            pairs: sum of their squared lengths.
            learned: whether they are read with gradients.
        """
        matrices = self.encoder if learned else self.encoder_forward
        attention = self.layers * self.width * _ATTENTION * (3 if learned else 1)
        return tokens * matrices + pairs * attention


def _flops(module: nn.Module, *, learns_before: bool = False) -> int:
    """Return the FLOPs of all passes of a module for one row, its parameters in the order of their use.

    A matrix has a forward pass; one for its own gradient, if it learns; and one for that of its input, if anything
    before it learns.
    """
    matrices = {id(each) for each in _matrices(module)}
    total = 0
    for parameter in module.parameters():
        if id(parameter) in matrices:
            total += _PASS * _size(parameter) * (1 + parameter.requires_grad + learns_before)
        learns_before |= parameter.requires_grad
    return total


def _matrices(module: nn.Module) -> list[nn.Parameter]:
    embeddings = {id(each.weight) for each in module.modules() if isinstance(each, nn.Embedding)}
    return [each for each in module.parameters() if len(_shape(each)) > 1 and id(each) not in embeddings]


def _shape(parameter: nn.Parameter) -> torch.Size:
    """Return the shape of a parameter, also where DeepSpeed keeps an empty tensor in its place."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def _size(parameter: nn.Parameter) -> int:
    return _shape(parameter).numel()


def text_encoder_packs(batch: Batch) -> list[PackedSequences]:
    """Return the sequences of a batch that the text encoder reads."""
    return [getattr(batch, field) for field in ENCODED]


def peak_of(device: str) -> float | None:
    """Return the peak half-precision FLOPs per second of a device by its name; None if it is unknown."""
    return next((peak for name, peak in PEAKS.items() if name in device), None)
