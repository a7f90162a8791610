"""Low-rank updates added to the weights that they update, so that an export is an ordinary encoder."""

from collections.abc import Mapping

from bali_ds.config import Lora
from bali_ds.training.stored_tensor import StoredTensor

_BASE, _DOWN, _UP = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"


def merge_lora(tensors: Mapping[str, StoredTensor], lora: Lora | None) -> dict[str, StoredTensor]:
    """Return the tensors under their names without adapters: W + alpha / rank * B A (Hu et al., ICLR 2022).

    Only what was updated is read into memory.

    Args:
        tensors: of a checkpoint, by name.
        lora: as trained; None returns the tensors as they are.
    """
    if lora is None:
        return dict(tensors)
    merged = {}
    for name, tensor in tensors.items():
        if ".lora_" in name:
            continue
        module, _, kind = name.partition(_BASE)
        if kind == "weight":
            update = tensors[module + _UP].tensor().float() @ tensors[module + _DOWN].tensor().float()
            weight = tensor.tensor().float() + lora.alpha / lora.rank * update
            tensor = StoredTensor(tensor.shape, (weight.reshape(-1),))
        merged[f"{module}.{kind}" if kind else name] = tensor
    return merged
