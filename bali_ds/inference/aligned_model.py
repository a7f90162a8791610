"""The whole aligned model of an exported directory: text encoder and graph encoder."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bali_ds.config import Recipe, parse_recipe
from bali_ds.data.evaluation_batches import evaluation_batches
from bali_ds.errors import InputError
from bali_ds.files import read_json
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.inference.encoder import DESCRIPTION, load
from bali_ds.inference.module_weights import fill
from bali_ds.model.aligner import Aligner
from bali_ds.model.graph_encoders import GraphEncoder, build_graph_encoder
from bali_ds.model.text_encoder import TextEncoder
from bali_ds.objectives.registry import stream_settings
from bali_ds.shards.shard_set import ShardSet


def load_aligned(path: Path, device: str = "cpu", graph: KnowledgeGraph | None = None) -> tuple[Aligner, Recipe]:
    """Load text and graph encoder of an exported model, in float32, without its masked-language-model head.

    Args:
        path: the exported directory.
        device: where the model computes.
        graph: that it will be used with; learned embeddings of concepts belong to the graph of the training.

    Raises:
        InputError: the directory is no export, its graph encoder does not fit its description, or the graph is another.
    """
    path = Path(path)
    if not (path / DESCRIPTION).is_file():
        raise InputError(f"{path}: has no {DESCRIPTION}; name a directory that `bali-ds export` wrote")
    description = read_json(path / DESCRIPTION)
    recipe = parse_recipe(description["recipe"], str(path / DESCRIPTION))
    # the encoder of the training may not be here; its tokenizer is
    own = recipe.text_encoder.model_copy(update={"path": str(path)})
    recipe = recipe.model_copy(update={"text_encoder": own})
    encoder = load(path)
    learned = recipe.graph_encoder.names == "learned"
    trained_on = description["fingerprints"].get("graph")
    if learned and graph and trained_on and trained_on != graph.fingerprint:
        raise InputError(
            f"{path}: has embeddings of the concepts of graph {trained_on}, but {graph.path} is {graph.fingerprint}; "
            "name that graph"
        )
    # a kind that knows no relations has none stored
    sizes = (description["num_relations"] or 0, description.get("num_concepts") or 0)
    encodes_graph = build_graph_encoder(recipe.graph_encoder, encoder.width, *sizes)
    if isinstance(encodes_graph, GraphEncoder):
        fill(encodes_graph, path / "graph_encoder.safetensors")
    names = "learned" if learned else "gradient"
    aligner = Aligner(TextEncoder(encoder.model, nn.Identity()), encodes_graph, recipe.objective, names=names)
    aligner.pooling = encoder.mention_pooling
    return aligner.to(device).eval(), recipe


def held_out_views(
    aligner: Aligner, recipe: Recipe, graph: KnowledgeGraph, shards: ShardSet, *, split: str, passages: int | None
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Return text views [V, d], graph views [V, d] and concept ids [V] of the unmasked passages of a split."""
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
        raise InputError(f"{shards.path}: has no passage in the split {split!r}; build with --validation")
    return np.concatenate(text), np.concatenate(nodes), np.concatenate(concepts)
