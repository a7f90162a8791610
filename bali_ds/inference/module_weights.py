"""Parts of an exported model that transformers knows nothing of, put back into their modules."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from bali_ds.errors import InputError, first_line
from bali_ds.model.pooling import POOLINGS, MentionPooling

POOLING_FILE = "mention_pooling.safetensors"


def fill(module: nn.Module, file: Path) -> None:
    """Load the weights of a module, in float32.

    Raises:
        InputError: the file cannot be read, or is of another recipe.
    """
    try:
        weights = {name: tensor.float() for name, tensor in load_file(file).items()}
        # Modules under two names are stored once, so only the names of parameters count as missing.
        missing = {name for name, _ in module.named_parameters()} - set(weights)
        unexpected = module.load_state_dict(weights, strict=False).unexpected_keys
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(f"{file}: {first_line(error)}") from error
    if wrong := sorted(missing) + unexpected:
        raise InputError(f"{file}: does not fit the recipe at {wrong[0]}")


def load_mention_pooling(path: Path, description: Mapping[str, Any], width: int) -> MentionPooling:
    """Return what makes one vector of a mention's tokens in an exported model; the mean where nothing says otherwise.

    Raises:
        InputError: the kind is unknown, or its learnt weights are missing or are those of another model.
    """
    kind = description.get("mention_pooling", "mean")
    if kind not in POOLINGS:
        raise InputError(f"{path}: pools mentions by {kind!r}; known are {', '.join(POOLINGS)}")
    pooling = MentionPooling(kind, width)
    if pooling.score is not None:
        fill(pooling, path / POOLING_FILE)
    return pooling.eval()
