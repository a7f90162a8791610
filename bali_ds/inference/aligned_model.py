"""Text and graph encoder of an exported model, for retrieval and other uses of both views."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bali_ds.config import Recipe, parse_recipe
from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.data.evaluation_batches import evaluation_batches
from bali_ds.errors import InputError
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.inference.encoder import available_device, load
from bali_ds.inference.exported_directory import (
    DESCRIPTION,
    GRAPH_ENCODER_FILE,
    check_module_weights,
    find_model,
    load_module_weights,
    read_description,
)
from bali_ds.model.aligner import Aligner
from bali_ds.model.graph_encoders import GraphEncoder, LinearizedGraph, build_graph_encoder
from bali_ds.model.text_encoder import TextEncoder
from bali_ds.objectives.registry import stream_settings
from bali_ds.shards.shard_set import ShardSet


def load_aligned(path: Path, device: str = "cpu", graph: KnowledgeGraph | None = None) -> tuple[Aligner, Recipe]:
    """Load text and graph encoder of an exported model in float32, without the masked language modeling head.

    Args:
        path: an exported directory.
        device: device of the model.
        graph: graph that the model will be used with; see `load_graph_encoder`.

    Raises:
        InputError: the directory is not an exported model, or as `load_graph_encoder`.
    """
    path, device = find_model(path), available_device(device)
    encoder = load(path)
    graph_encoder, recipe = load_graph_encoder(path, encoder.width, graph)
    own = recipe.text_encoder
    prompt = Tokenizer.query_prompt_ids(path, own.query_prompt)
    text = TextEncoder(encoder.model, nn.Identity(), pooling=own.pooling, prompt=prompt)
    names = "learned" if recipe.graph_encoder.names == "learned" else "gradient"
    aligner = Aligner(text, graph_encoder, recipe.objective, names=names)
    aligner.pooling = encoder.mention_pooling
    return aligner.to(device).eval(), recipe


def load_graph_encoder(
    path: Path, width: int, graph: KnowledgeGraph | None = None
) -> tuple[GraphEncoder | LinearizedGraph, Recipe]:
    """Load the graph encoder of an exported model in float32, with the recipe of its training.

    Args:
        path: an exported directory.
        width: features of its text encoder.
        graph: graph that the model will be used with; learned concept embeddings are valid for one graph only.

    Raises:
        InputError: the directory is not an exported model, its graph encoder does not match its description, or the
            model has learned concept embeddings of another graph.
    """
    if not (path / DESCRIPTION).is_file():
        raise InputError(f"{path}: has no {DESCRIPTION}; pass a directory that `bali-ds export` wrote")
    description = read_description(path)
    recipe = parse_recipe(description.recipe, str(path / DESCRIPTION))
    # the encoder that training started from may be missing here; the exported directory has its tokenizer
    own = recipe.text_encoder.model_copy(update={"path": str(path), "weights": "pretrained"})
    recipe = recipe.model_copy(update={"text_encoder": own})
    trained_on = description.fingerprints.get("graph")
    if recipe.graph_encoder.names == "learned" and graph and trained_on and trained_on != graph.fingerprint:
        raise InputError(
            f"{path}: has concept embeddings of graph {trained_on}, but {graph.path} is {graph.fingerprint}; "
            "pass the graph of the training"
        )
    # encoders without relation embeddings do not store how many relations there are
    sizes = (description.num_relations or 0, description.num_concepts or 0)
    # built without memory first: the sizes in the description must be those of the weights
    with torch.device("meta"):
        shapes = build_graph_encoder(recipe.graph_encoder, width, *sizes)
    if isinstance(shapes, GraphEncoder):
        check_module_weights(shapes, path / GRAPH_ENCODER_FILE)
    graph_encoder = build_graph_encoder(recipe.graph_encoder, width, *sizes)
    if isinstance(graph_encoder, GraphEncoder):
        load_module_weights(graph_encoder, path / GRAPH_ENCODER_FILE)
    return graph_encoder.eval(), recipe


def held_out_views(
    aligner: Aligner, recipe: Recipe, graph: KnowledgeGraph, shards: ShardSet, *, split: str, passages: int | None
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Return text views [V, d], graph views [V, d] and concept ids [V] of a split's passages, without masking.

    Raises:
        InputError: the shards have another vocabulary or no passages in the split, or cannot be read.
    """
    tokens, rows = shards.index["tokenizer"]["vocab_size"], aligner.text.encoder.get_input_embeddings().num_embeddings
    if tokens > rows:
        raise InputError(f"{shards.path}: has a vocabulary of {tokens} tokens, but the model has {rows} embeddings")
    settings = replace(stream_settings(recipe), name_rows=False)
    device = next(aligner.parameters()).device
    text, nodes, concepts = [], [], []
    with torch.inference_mode():
        for batch in evaluation_batches(shards, graph, settings, split=split, batch_size=32, limit=passages):
            views = aligner.encode(batch.to(device))
            text.append(views.text.cpu().numpy())
            nodes.append(views.paired_graph.cpu().numpy())
            concepts.append(views.text_concept_ids.cpu().numpy())
    if not concepts:
        raise InputError(f"{shards.path}: has no passages in the split {split!r}; build the shards with --validation")
    return np.concatenate(text), np.concatenate(nodes), np.concatenate(concepts)
