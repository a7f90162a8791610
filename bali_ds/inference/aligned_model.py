"""The whole aligned model of an exported directory: text encoder and graph encoder."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from bali_ds.config import Recipe
from bali_ds.data.evaluation_batches import evaluation_batches
from bali_ds.data.settings import StreamSettings
from bali_ds.errors import InputError
from bali_ds.files import read_json
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.inference.encoder import DESCRIPTION, load
from bali_ds.model.aligner import Aligner
from bali_ds.model.graph_encoders import GraphEncoder, build_graph_encoder
from bali_ds.model.pooling import POOLINGS, MentionPooling
from bali_ds.model.text_encoder import TextEncoder
from bali_ds.shards.shard_set import ShardSet


def load_aligned(path: Path, device: str = "cpu", graph: KnowledgeGraph | None = None) -> tuple[Aligner, Recipe]:
    """Load text and graph encoder of an exported model, in float32, without its masked-language-model head.

    Args:
        path: the exported directory.
        device: where the model computes.
        graph: that it will be used with; learnt embeddings of concepts belong to the graph of the training.

    Raises:
        InputError: the directory is no export, its graph encoder does not fit its description, or the graph is another.
    """
    path = Path(path)
    if not (path / DESCRIPTION).is_file():
        raise InputError(f"{path}: has no {DESCRIPTION}; name a directory that `bali-ds export` wrote")
    description = read_json(path / DESCRIPTION)
    recipe = Recipe.model_validate(description["recipe"])
    # the encoder of the training may not be here; its tokenizer is
    own = recipe.text_encoder.model_copy(update={"path": str(path)})
    recipe = recipe.model_copy(update={"text_encoder": own})
    encoder = load(path)
    learnt = recipe.graph_encoder.names == "learnt"
    trained_on = description["fingerprints"].get("graph")
    if learnt and graph and trained_on and trained_on != graph.fingerprint:
        raise InputError(
            f"{path}: has embeddings of the concepts of graph {trained_on}, but {graph.path} is {graph.fingerprint}; "
            "name that graph"
        )
    # a kind that knows no relations has none stored
    sizes = (description["num_relations"] or 0, description.get("num_concepts") or 0)
    encodes_graph = build_graph_encoder(recipe.graph_encoder, encoder.width, *sizes)
    if isinstance(encodes_graph, GraphEncoder):
        fill(encodes_graph, path / "graph_encoder.safetensors")
    names = "learnt" if learnt else "gradient"
    aligner = Aligner(TextEncoder(encoder.model, nn.Identity()), encodes_graph, recipe.objective, names=names)
    aligner.pooling = encoder.mention_pooling
    return aligner.to(device).eval(), recipe


def held_out_views(
    aligner: Aligner, recipe: Recipe, graph: KnowledgeGraph, shards: ShardSet, *, split: str, passages: int | None
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Return text views [V, d], graph views [V, d] and concept ids [V] of the unmasked passages of a split."""
    settings = replace(StreamSettings.of(recipe), name_rows=False)
    device = next(aligner.parameters()).device
    text, nodes, concepts = [], [], []
    with torch.inference_mode():
        for batch in evaluation_batches(shards, graph, settings, split=split, batch_size=32, limit=passages):
            views = aligner.encode(batch.to(device))
            text.append(views.text.cpu().numpy())
            nodes.append(views.paired_graph.cpu().numpy())
            concepts.append(views.text_ids.cpu().numpy())
    if not concepts:
        raise InputError(f"{shards.path}: has no passage in the split {split!r}; build with --validation")
    return np.concatenate(text), np.concatenate(nodes), np.concatenate(concepts)


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
        raise InputError(f"{file}: {str(error).splitlines()[0]}") from error
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
