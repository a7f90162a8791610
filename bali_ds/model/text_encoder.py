"""The text encoder: any Hugging Face encoder with its own masked-language-model head, or a decoder without one."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForMaskedLM, PretrainedConfig, PreTrainedModel

from bali_ds.data.batch import PackedSequences
from bali_ds.errors import InputError, first_line
from bali_ds.model.decoder import WeightPartition, decoder_weights, is_decoder, load_partitioned
from bali_ds.model.packed_encoder import encode_in_buckets, encode_packed, first_position, position_embeddings
from bali_ds.model.pooling import pool_sequences
from bali_ds.model.pretrained import fresh_model, load_configuration, load_model

logger = logging.getLogger(__name__)


class TextEncoder(nn.Module):
    """A pretrained encoder and its masked-language-model head, over packed sequences.

    Attributes:
        encoder: the Hugging Face base model.
        head: maps hidden states [K, d] to logits [K, vocabulary]; its output weights are those of the embeddings
            where the configuration ties them. None for a decoder.
        pooling: how names are pooled, see `pool_sequences`.
        prompt: int64 [P], the tokens before queries, which no mean includes; None without a prompt.
        fresh_head: whether the head has no pretrained weights of its own.
        first_position: the number of the first position where the encoder reads packed sequences; None where it reads
            length buckets.
        for_gpu: whether a model on the meta device stands for one on a GPU.
    """

    def __init__(
        self,
        encoder: PreTrainedModel,
        head: nn.Module | None,
        *,
        fresh_head: bool = False,
        first_position: int | None = None,
        pooling: str = "mean",
        prompt: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.fresh_head = fresh_head
        self.first_position = first_position
        self.pooling = pooling
        self.for_gpu = False
        self.prompt: Tensor | None
        self.register_buffer("prompt", torch.tensor(prompt) if prompt else None, persistent=False)

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
            on_gpu = self.for_gpu or packs[0].input_ids.is_cuda
            states = encode_packed(self.encoder, packs, self.first_position, on_gpu=on_gpu)
        return states.split([len(pack.input_ids) for pack in packs])

    def name_vectors(self, packed: PackedSequences) -> Tensor:
        """Return one float32 vector per sequence: [n, d]."""
        (hidden,) = self.hidden_states((packed,))
        return self.pool(hidden, packed)

    def pool(self, hidden: Tensor, packed: PackedSequences) -> Tensor:
        """Return one float32 vector per sequence [n, d] from the states of its tokens [T, d]."""
        return pool_sequences(hidden, packed, self.pooling, self.prompt)


def load_text_encoder(
    path: str,
    *,
    seed: int,
    weights: str = "pretrained",
    dropout: float | None = None,
    layer: int | None = None,
    attention: str = "packed",
    pooling: str = "mean",
    bidirectional: bool = False,
    prompt: Sequence[int] = (),
    partition: WeightPartition | None = None,
) -> TextEncoder:
    """Load a Hugging Face encoder with its masked-language-model head, or a decoder.

    Where the checkpoint has no head, a new one is initialized, and the log says so.

    Args:
        path: a directory or hub name.
        seed: of new weights.
        weights: "pretrained", or "random" for new weights of its architecture.
        dropout: overrides the checkpoint's own.
        layer: the layer after which the encoder ends, counted from 1; None keeps all.
        attention: "packed", or in length buckets "sdpa", torch's fused attention, "flash_attention_2" or "eager".
            Architectures that cannot read packed sequences, and causal decoders, take "sdpa" for "packed".
        pooling: see `pool_sequences`.
        bidirectional: whether a decoder attends to both sides.
        prompt: token ids before queries.
        partition: how the weights of a decoder are partitioned over the ranks while they are loaded, a collective call;
            None loads all of them on every rank.

    Raises:
        InputError: the directory or hub name does not exist or has no weights, the architecture is neither a decoder
            nor has a masked-language-model head, it has fewer layers, or the attention is not available here.
    """
    torch.manual_seed(seed)
    config = read_configuration(path, dropout=dropout, layer=layer, bidirectional=bidirectional)
    if weights == "random":
        logger.info("%s: new weights of its architecture, initialized with seed %d", path, seed)
    if is_decoder(config):
        model = _decoder(path, config, weights, partition)
        if attention == "packed" and (not bidirectional or partition is not None):
            attention = "sdpa"  # packed attention is not causal, and partitioned weights cannot be tried out
        first = _choose_attention(model, attention)
        return TextEncoder(model, None, first_position=first, pooling=pooling, prompt=prompt)
    if weights == "random":
        model, fresh_head = fresh_model(AutoModelForMaskedLM, config, path), True
    else:
        model, fresh_head = load_model(AutoModelForMaskedLM, path, config=config, dtype=torch.float32)
        if fresh_head:
            logger.info("%s: has no pretrained masked-language-model head; a new one is initialized", path)
    head = _head(model, path)
    first = _choose_attention(model, attention)
    return TextEncoder(
        model.base_model, head, fresh_head=fresh_head, first_position=first, pooling=pooling, prompt=prompt
    )


def _decoder(path: str, config: PretrainedConfig, weights: str, partition: WeightPartition | None) -> PreTrainedModel:
    model: PreTrainedModel
    if weights == "random":
        model = fresh_model(AutoModel, config, path)
    elif partition is not None:
        model = load_partitioned(config, decoder_weights(path, config), partition)
    else:
        model, _ = load_model(AutoModel, path, config=config, dtype=torch.float32)
    return model


def read_configuration(
    path: str, *, dropout: float | None = None, layer: int | None = None, bidirectional: bool = False
) -> PretrainedConfig:
    """Return the configuration of an encoder, with another dropout, fewer layers or attention to both sides.

    Raises:
        InputError: the directory or hub name does not exist, the encoder has fewer layers, or `bidirectional` is set
            for an encoder that attends to both sides by itself.
    """
    config = load_configuration(path)
    if is_decoder(config):
        config.use_cache = False
        if bidirectional:
            # transformers then builds masks without a causal part, here and wherever the export is loaded
            config.is_causal = False
    elif bidirectional:
        raise InputError(f"text_encoder.bidirectional: {path} is not a decoder; it attends to both sides by itself")
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
