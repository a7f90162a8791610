"""What of a pretrained encoder learns, and what memory its activations take."""

from torch import nn
from transformers import PreTrainedModel

from bali_ds.config import Lora
from bali_ds.config import TextEncoder as Settings
from bali_ds.errors import InputError
from bali_ds.model.text import TextEncoder


def adapt(text: TextEncoder, settings: Settings) -> None:
    """Freeze, add low-rank updates, and recompute activations, as a recipe says.

    Raises:
        InputError: more layers are to be frozen than there are, or peft is missing or refuses.
    """
    encoder = text.encoder
    if settings.lora:
        _add_lora(encoder, settings.lora)
    if settings.frozen_embeddings:
        getattr(encoder, "embeddings", encoder.get_input_embeddings()).requires_grad_(False)
    layers = _layers(encoder)
    if settings.frozen_layers > len(layers):
        raise InputError(
            f"text_encoder.frozen_layers {settings.frozen_layers}: {settings.path} has {len(layers)} layers"
        )
    for layer in layers[: settings.frozen_layers]:
        layer.requires_grad_(False)
    if settings.gradient_checkpointing:
        encoder.gradient_checkpointing_enable({"use_reentrant": False})


def _layers(encoder: PreTrainedModel) -> nn.ModuleList:
    """The transformer layers: the one list of as many modules as the configuration says."""
    count = encoder.config.num_hidden_layers
    found = [module for module in encoder.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    return found[0]


def _add_lora(encoder: PreTrainedModel, lora: Lora) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise InputError("text_encoder.lora: needs the package peft; pip install 'bali-ds[lora]'") from error
    chosen = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.modules, bias="none"
    )
    try:
        inject_adapter_in_model(chosen, encoder)
    except ValueError as error:
        raise InputError(f"text_encoder.lora: {str(error).splitlines()[0]}") from error
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(".lora_" in name)
