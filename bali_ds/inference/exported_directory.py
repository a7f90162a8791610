"""Files of an exported model directory, and loading of the parts that transformers does not know."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from bali_ds.directories import Output
from bali_ds.errors import InputError, first_line
from bali_ds.model.pooling import POOLINGS, MentionPooling
from bali_ds.model.pretrained import PICKLED_WEIGHTS

DESCRIPTION = "bali_ds.json"
POOLING_FILE = "mention_pooling.safetensors"
GRAPH_ENCODER_FILE = "graph_encoder.safetensors"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "spm.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja",
)  # fmt: skip
EXPORT = Output(
    "an exported model",
    DESCRIPTION,
    ("format_version", "pooling"),
    (
        "*.safetensors", "*.safetensors.index.json", "config.json", "README.md", *TOKENIZER_FILES,
        "modules.json", "sentence_bert_config.json", "1_Pooling/config.json", "onnx/model.onnx",
    ),
)  # fmt: skip


def check_directory(path: Path) -> None:
    """Check that a directory holds a configuration and weights of a model.

    Raises:
        InputError: it does not.
    """
    if not (path / "config.json").is_file():
        raise InputError(f"{path}: is not a model directory: it has no config.json")
    if not any((path / name).is_file() for name in (*WEIGHTS, *PICKLED_WEIGHTS)):
        raise InputError(f"{path}: has a config.json but no weights; expected one of {', '.join(WEIGHTS)}")


def load_module_weights(module: nn.Module, file: Path) -> None:
    """Load the weights of a module from a safetensors file, in float32.

    Raises:
        InputError: the file cannot be read, or its tensors do not match the module.
    """
    try:
        weights = {name: tensor.float() for name, tensor in load_file(file).items()}
        # weights that a module has under two names are stored once; named_parameters lists them once
        missing = {name for name, _ in module.named_parameters()} - set(weights)
        unexpected = module.load_state_dict(weights, strict=False).unexpected_keys
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(f"{file}: {first_line(error)}") from error
    if wrong := sorted(missing) + unexpected:
        raise InputError(f"{file}: does not match the recipe at {wrong[0]}; export the run again")


def load_mention_pooling(path: Path, description: Mapping[str, Any], width: int) -> MentionPooling:
    """Return the mention pooling of an exported model; the mean if its description names none.

    Raises:
        InputError: the kind of pooling is unknown, or its learned weights are missing or do not match.
    """
    kind = description.get("mention_pooling", "mean")
    if kind not in POOLINGS:
        raise InputError(f"{path}: mention pooling {kind!r} is unknown; known are {', '.join(POOLINGS)}")
    pooling = MentionPooling(kind, width)
    if pooling.score is not None:
        load_module_weights(pooling, path / POOLING_FILE)
    return pooling.eval()
