"""The text encoder: any Hugging Face encoder with its own masked-language-model head."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForMaskedLM, PretrainedConfig, PreTrainedModel

from bali_ds.data.batch import TokenBlock
from bali_ds.errors import InputError, first_line
from bali_ds.model.pooling import mean_of_inner_tokens
from bali_ds.model.pretrained import fresh_model, load_configuration, load_model

logger = logging.getLogger(__name__)

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.bin.index.json")


class TextEncoder(nn.Module):
    """A pretrained encoder and its head, both called by blocks of similar length.

    Attributes:
        encoder: the Hugging Face base model.
        head: maps hidden states [K, d] to logits [K, vocabulary]; its output weights are tied to the embeddings.
        fresh_head: whether the head has no pretrained weights of its own.
    """

    def __init__(self, encoder: PreTrainedModel, head: nn.Module, *, fresh_head: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.fresh_head = fresh_head

    @property
    def width(self) -> int:
        """The hidden size d."""
        return int(self.encoder.config.hidden_size)

    def hidden_states(self, block: TokenBlock) -> torch.Tensor:
        """Return the last layer's hidden states of one block, [n, L, d]."""
        return self.encoder(input_ids=block.input_ids, attention_mask=block.attention_mask).last_hidden_state

    def flat_hidden_states(self, blocks: tuple[TokenBlock, ...]) -> torch.Tensor:
        """Return the hidden states of all blocks along one token axis, padding included: [sum of n * L, d]."""
        return torch.cat([self.hidden_states(block).flatten(0, 1) for block in blocks])

    def name_vectors(self, blocks: tuple[TokenBlock, ...]) -> torch.Tensor:
        """Return one float32 vector a row, the mean over its tokens without the special ones: [sum of n, d]."""
        return torch.cat([mean_of_inner_tokens(self.hidden_states(block), block.lengths) for block in blocks])


def load_text_encoder(
    path: str, *, seed: int, dropout: float | None = None, layer: int | None = None, attention: str = "sdpa"
) -> TextEncoder:
    """Load a Hugging Face encoder with its masked-language-model head.

    Where the checkpoint holds no head, the architecture's own is made afresh, tied to the embeddings, and the log
    says so. A directory without any weights is initialized from its configuration. Both draw from `seed`.

    Args:
        path: a directory or hub name.
        seed: of fresh weights.
        dropout: in place of the checkpoint's own.
        layer: the layer after which the encoder ends, counted from 1; None keeps all.
        attention: "sdpa", torch's fused attention where the architecture has it, "flash_attention_2" or "eager".

    Raises:
        InputError: no such directory or hub name, an architecture without a masked-language-model head, fewer layers,
            or no such attention here.
    """
    torch.manual_seed(seed)
    config = read_configuration(path, dropout=dropout, layer=layer)
    directory = Path(path)
    if directory.is_dir() and not any(any(directory.glob(pattern)) for pattern in WEIGHT_FILES):
        logger.info("%s: holds no weights, initialized from its configuration with seed %d", path, seed)
        model, fresh_head = fresh_model(AutoModelForMaskedLM, config, path), True
    else:
        model, fresh_head = _pretrained(path, config)
    head = _head(model, path)
    _choose_attention(model, attention)
    return TextEncoder(model.base_model, head, fresh_head=fresh_head)


def read_configuration(path: str, *, dropout: float | None = None, layer: int | None = None) -> PretrainedConfig:
    """Return the configuration of an encoder with another dropout, and cut after a layer.

    Raises:
        InputError: no such directory or hub name, or fewer layers.
    """
    config = load_configuration(path)
    if dropout is not None:
        for key, value in config.to_dict().items():
            if "dropout" in key and isinstance(value, int | float):
                setattr(config, key, dropout)
    if layer is not None:
        if layer > config.num_hidden_layers:
            raise InputError(f"text_encoder.layer {layer}: {path} has {config.num_hidden_layers} layers")
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layer]
        config.num_hidden_layers = layer
    return config


def positions_of(config: Any) -> int:
    """Return how many tokens an architecture reads at once, special tokens included."""
    positions = getattr(config, "max_position_embeddings", None) or 512
    offset = (config.pad_token_id or 0) + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
    return int(positions) - offset


def _choose_attention(model: PreTrainedModel, attention: str) -> None:
    """Set how attention is computed, after the head was tried out on a CPU in float32."""
    flash = attention == "flash_attention_2"
    # a plan on shapes counts the memory of fused attention by itself
    if attention == "sdpa" or (flash and model.device.type == "meta"):
        return
    reason = "needs a GPU" if flash and not torch.cuda.is_available() else ""
    if not reason:
        try:
            model.set_attn_implementation(attention)
        except (ImportError, ValueError) as error:
            reason = first_line(error)
    if not reason and model.config._attn_implementation != attention:
        reason = f"{type(model).__name__} does not have it"
    if reason:
        raise InputError(f"text_encoder.attention: {attention} cannot be used here ({reason}); take sdpa")


def _pretrained(path: str, config: PretrainedConfig) -> tuple[PreTrainedModel, bool]:
    """Return the model, and whether its head is fresh."""
    model, missing = load_model(AutoModelForMaskedLM, path, config=config, dtype=torch.float32)
    prefix = model.base_model_prefix + "."
    if damaged := [key for key in missing if key.startswith(prefix)]:
        raise InputError(f"{path}: the weights lack {damaged[0]}; the checkpoint is of another architecture")
    if missing:
        logger.info("%s: holds no pretrained masked-language-model head; a fresh one, tied to the embeddings", path)
    return model, bool(missing)


def _head(model: PreTrainedModel, path: str) -> nn.Module:
    """Return what follows the base model: one module, or several applied in the order of their definition.

    Whether that is how this architecture computes its logits is tried out, unless the model is shapes without values.
    """
    modules = [module for name, module in model.named_children() if name != model.base_model_prefix]
    head = modules[0] if len(modules) == 1 else nn.Sequential(*modules)
    if model.device.type == "meta":
        return head
    training = model.training
    model.eval()
    with torch.no_grad():
        tokens = torch.tensor([[1, 2, 3, 4]])
        expected = model(input_ids=tokens).logits
        try:
            same = torch.allclose(head(model.base_model(input_ids=tokens).last_hidden_state), expected, atol=1e-4)
        except (RuntimeError, TypeError):  # what a head raises that cannot be called alone
            same = False
    model.train(training)
    if not same:
        raise InputError(f"{path}: the masked-language-model head of {type(model).__name__} cannot be called by itself")
    return head
