"""The text encoder: any Hugging Face encoder with its own masked-language-model head."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, PretrainedConfig, PreTrainedModel

from bali_ds.data.batch import PackedSequences
from bali_ds.errors import InputError, first_line
from bali_ds.model.packed_encoder import encode_in_buckets, encode_packed, first_position, position_embeddings
from bali_ds.model.pooling import mean_of_inner_tokens
from bali_ds.model.pretrained import fresh_model, load_configuration, load_model

logger = logging.getLogger(__name__)


class TextEncoder(nn.Module):
    """A pretrained encoder and its masked-language-model head, over packed sequences.

    Attributes:
        encoder: the Hugging Face base model.
        head: maps hidden states [K, d] to logits [K, vocabulary]; its output weights are those of the embeddings
            where the configuration ties them.
        fresh_head: whether the head has no pretrained weights of its own.
        first_position: the number of the first position where the encoder reads packed sequences; None where it reads
            length buckets.
    """

    def __init__(
        self,
        encoder: PreTrainedModel,
        head: nn.Module,
        *,
        fresh_head: bool = False,
        first_position: int | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.fresh_head = fresh_head
        self.first_position = first_position

    @property
    def width(self) -> int:
        """The hidden size d."""
        return int(self.encoder.config.hidden_size)

    def hidden_states(self, packs: Sequence[PackedSequences]) -> tuple[Tensor, ...]:
        """Return the last layer's hidden states of every token, [T, d] of each pack; the encoder is called once.

        An encoder without packed attention is called for a constant number of length buckets instead.
        """
        if self.first_position is None:
            states = encode_in_buckets(self.encoder, packs)
        else:
            states = encode_packed(self.encoder, packs, self.first_position)
        return states.split([len(pack.input_ids) for pack in packs])

    def name_vectors(self, packed: PackedSequences) -> Tensor:
        """Return one float32 vector per sequence, the mean over its tokens without the special ones: [n, d]."""
        (hidden,) = self.hidden_states((packed,))
        return mean_of_inner_tokens(hidden, packed)


def load_text_encoder(
    path: str,
    *,
    seed: int,
    weights: str = "pretrained",
    dropout: float | None = None,
    layer: int | None = None,
    attention: str = "packed",
) -> TextEncoder:
    """Load a Hugging Face encoder with its masked-language-model head.

    Where the checkpoint has no head, a new one is initialized, and the log says so.

    Args:
        path: a directory or hub name.
        seed: of new weights.
        weights: "pretrained", or "random" for new weights of its architecture.
        dropout: overrides the checkpoint's own.
        layer: the layer after which the encoder ends, counted from 1; None keeps all.
        attention: "packed", or in length buckets "sdpa", torch's fused attention, "flash_attention_2" or "eager".
            Architectures that cannot read packed sequences take "sdpa" for "packed".

    Raises:
        InputError: the directory or hub name does not exist or has no weights, the architecture has no
            masked-language-model head or fewer layers, or the attention is not available here.
    """
    torch.manual_seed(seed)
    config = read_configuration(path, dropout=dropout, layer=layer)
    if weights == "random":
        logger.info("%s: new weights of its architecture, initialized with seed %d", path, seed)
        model, fresh_head = fresh_model(AutoModelForMaskedLM, config, path), True
    else:
        model, fresh_head = load_model(AutoModelForMaskedLM, path, config=config, dtype=torch.float32)
        if fresh_head:
            logger.info("%s: has no pretrained masked-language-model head; a new one is initialized", path)
    head = _head(model, path)
    first = _choose_attention(model, attention)
    return TextEncoder(model.base_model, head, fresh_head=fresh_head, first_position=first)


def read_configuration(path: str, *, dropout: float | None = None, layer: int | None = None) -> PretrainedConfig:
    """Return the configuration of an encoder, with another dropout or fewer layers where asked for.

    Raises:
        InputError: the directory or hub name does not exist, or the encoder has fewer layers.
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


def positions_of(model: Any) -> int:
    """Return the longest sequence that a model reads, special tokens included.

    RoBERTa and its kin number positions from the padding token on, so that the first position embeddings are not used.
    """
    limit = getattr(model.config, "max_position_embeddings", None) or 0
    embeddings = position_embeddings(model)
    rows = getattr(embeddings, "weight", None)
    if rows is None:
        return int(limit) if limit > 0 else 512
    padding = getattr(embeddings, "padding_idx", None)
    usable = int(rows.shape[0]) - (0 if padding is None else padding + 1)
    return min(int(limit), usable) if limit > 0 else usable


def _choose_attention(model: PreTrainedModel, attention: str) -> int | None:
    """Set the attention implementation and return the first position of packed sequences, None for length buckets.

    Call it after `_head`, which runs the model on a CPU in float32.
    """
    if attention == "packed":
        first = first_position(model)
        if first is None:
            logger.info("%s cannot read packed sequences; it reads length buckets", type(model).__name__)
        return first
    flash = attention == "flash_attention_2"
    # on the meta device, the planner accounts for fused attention itself
    if attention == "sdpa" or (flash and model.device.type == "meta"):
        return None
    reason = "needs a GPU" if flash and not torch.cuda.is_available() else ""
    if not reason:
        try:
            model.set_attn_implementation(attention)
        except (ImportError, ValueError) as error:
            reason = first_line(error)
    if not reason and model.config._attn_implementation != attention:
        reason = f"{type(model).__name__} does not have it"
    if reason:
        raise InputError(f"text_encoder.attention: {attention} cannot be used here ({reason}); take packed")
    return None


def _head(model: PreTrainedModel, path: str) -> nn.Module:
    """Return the head: the one module after the base model, or several in the order of their definition.

    The result is checked against the logits of the whole model, except on the meta device.
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
        except (RuntimeError, TypeError):  # raised by a head that cannot be called alone
            same = False
    model.train(training)
    if not same:
        raise InputError(f"{path}: the masked-language-model head of {type(model).__name__} cannot be called by itself")
    return head
