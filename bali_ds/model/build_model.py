"""Builds the model that a recipe describes."""

import torch
from torch import nn
from transformers import PreTrainedModel

from bali_ds.config import LoraConfig, Recipe, TextEncoderConfig
from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.data.mixture import Mixture
from bali_ds.errors import InputError, first_line, missing_package
from bali_ds.model.aligner import Aligner
from bali_ds.model.decoder import WeightPartition, is_decoder
from bali_ds.model.fused_layer import fuse_layers
from bali_ds.model.graph_encoders import build_graph_encoder
from bali_ds.model.name_table import NameTable
from bali_ds.model.text_encoder import TextEncoder, load_text_encoder, read_configuration
from bali_ds.objectives.registry import active_objectives

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The torch dtype of each `precision` of a recipe."""


def adapt(text: TextEncoder, settings: TextEncoderConfig) -> None:
    """Freeze layers, add low-rank updates and switch on gradient checkpointing, as a recipe says.

    Raises:
        InputError: `frozen_layers` exceeds the number of layers, or peft is missing or fails.
    """
    encoder = text.encoder
    if settings.lora:
        _add_lora(encoder, settings.lora)
    if settings.frozen_embeddings:
        getattr(encoder, "embeddings", encoder.get_input_embeddings()).requires_grad_(False)
    layers = transformer_layers(encoder)
    if settings.frozen_layers > len(layers):
        raise InputError(
            f"text_encoder.frozen_layers {settings.frozen_layers}: {settings.path} has {len(layers)} layers"
        )
    for layer in layers[: settings.frozen_layers]:
        layer.requires_grad_(False)
    if settings.gradient_checkpointing:
        # transformers 5.23 gave it a new name and warns about the old one.
        enable = getattr(encoder, "activation_checkpointing_enable", encoder.gradient_checkpointing_enable)
        enable({"use_reentrant": False})


def transformer_layers(encoder: PreTrainedModel) -> nn.ModuleList:
    """Return the transformer layers: the first module list of the length that the configuration gives."""
    count = encoder.config.num_hidden_layers
    found = [module for module in encoder.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    return found[0]


def _add_lora(encoder: PreTrainedModel, lora: LoraConfig) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise missing_package(error, "lora") from error
    chosen = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.modules, bias="none"
    )
    try:
        inject_adapter_in_model(chosen, encoder)
    except ValueError as error:
        raise InputError(f"text_encoder.lora: {first_line(error)}") from error
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(".lora_" in name)


def try_to_fuse_layers(recipe: Recipe, text: TextEncoder) -> bool:
    """Fuse the transformer layers if the recipe asks for it and they can be; return whether they are."""
    wanted = recipe.text_encoder.fused_layers and recipe.precision != "fp32"
    reads_packed_sequences = text.first_position is not None
    return wanted and reads_packed_sequences and fuse_layers(transformer_layers(text.encoder))


def build_aligner(
    recipe: Recipe, num_relations: int, shards: Mixture | None = None, *, partition: WeightPartition | None = None
) -> Aligner:
    """Return the model that a recipe describes; new weights are initialized from the recipe's seed.

    Args:
        recipe: the run.
        num_relations: relation ids of the graph, both directions together.
        shards: give the tokens of all names and the number of concepts; needed where name vectors are cached or
            concepts have learned embeddings.
        partition: see `load_text_encoder`.

    Raises:
        InputError: the encoder cannot be loaded, or does not fit the recipe.
    """
    encoder = recipe.text_encoder
    check_headless(recipe)
    text = load_text_encoder(
        encoder.path,
        seed=recipe.seed,
        weights=encoder.weights,
        dropout=encoder.dropout,
        layer=encoder.layer,
        attention=encoder.attention,
        pooling=encoder.pooling,
        bidirectional=encoder.bidirectional,
        prompt=Tokenizer.query_prompt_ids(encoder.path, encoder.query_prompt),
        partition=partition,
    )
    torch.manual_seed(recipe.seed)
    num_concepts = int(shards.index["graph"]["concepts"]) if shards else 0
    graph = build_graph_encoder(recipe.graph_encoder, text.width, num_relations, num_concepts)
    objectives = active_objectives(recipe.objective)
    for objective in objectives:
        objective.module = objective.build(text, num_relations=num_relations, graph_tokens=recipe.graph_encoder.tokens)
    adapt(text, encoder)
    return Aligner(
        text,
        graph,
        recipe.objective,
        pooling=encoder.pooling,
        names=recipe.graph_encoder.names,
        table=_table(recipe, text.width, shards) if shards and recipe.graph_encoder.names == "cached" else None,
        objectives=objectives,
    )


def check_headless(recipe: Recipe) -> None:
    """Refuse objectives that predict tokens where the encoder is a decoder, before its weights are read."""
    if not is_decoder(read_configuration(recipe.text_encoder.path)):
        return
    for name in recipe.objective.active:
        if "head" in recipe.objective.section(name).needs:
            raise InputError(
                f"objective.{name}.weight: {recipe.text_encoder.path} is a decoder and has no masked-language-model "
                "head; set the weight to 0"
            )


def _table(recipe: Recipe, width: int, shards: Mixture) -> NameTable:
    tokenizer = shards.index["tokenizer"]
    return NameTable(
        shards.names,
        width,
        refresh_every=recipe.graph_encoder.refresh_every,
        special=tuple(int(tokenizer[name]) for name in ("cls_id", "sep_id", "mask_id")),  # type: ignore[arg-type]
        longest=int(shards.index["max_name_tokens"]),
    )
