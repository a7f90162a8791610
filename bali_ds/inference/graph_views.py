"""Graph views of all concepts of a graph: the table that in-context linking compares mentions with."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bali_ds.data.ego_graphs import sample_ego_graphs
from bali_ds.data.sequences import starts
from bali_ds.directories import Output, published_directory
from bali_ds.errors import InputError
from bali_ds.files import read_json, write_json
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.graph.neighbor_sampling import sample_neighbors
from bali_ds.inference.aligned_model import load_graph_encoder
from bali_ds.inference.encoder import Encoder, available_device
from bali_ds.inference.exported_directory import find_model
from bali_ds.model.graph_encoders import GraphEncoder
from bali_ds.npy import open_npy
from bali_ds.randomness import derive

# A concept's view is the mean over several samples of its neighbors; each was one view in training.
_SAMPLES = 4
_CONCEPTS_AT_ONCE = 4096
GRAPH_VIEWS = Output(
    "the graph views of concepts", "index.json", ("graph", "model", "fan_out", "samples"), ("vectors.npy",)
)


def graph_view_table(
    names: NDArray[np.float32], graph_encoder: GraphEncoder, graph: KnowledgeGraph, fan_out: int
) -> NDArray[np.float32]:
    """Return the unit vector of each concept's neighborhood, float32 [C, d].

    Args:
        names: float32 [C, d], the vectors of the preferred names, not normalized.
        graph_encoder: of the same model.
        graph: the graph.
        fan_out: neighbors of a concept, as in training.
    """
    on_device = torch.from_numpy(names).to(next(graph_encoder.parameters()).device)
    table = np.zeros(names.shape, np.float32)
    with torch.inference_mode():
        for begin in range(0, graph.num_concepts, _CONCEPTS_AT_ONCE):
            concept_ids = np.arange(begin, min(begin + _CONCEPTS_AT_ONCE, graph.num_concepts))
            views = sum(
                _views(graph_encoder, graph, on_device, concept_ids, fan_out, sample) for sample in range(_SAMPLES)
            )
            table[concept_ids] = torch.nn.functional.normalize(views, dim=1).cpu().numpy()  # type: ignore[arg-type]
    return table


def open_graph_views(
    path: Path,
    encoder: Encoder,
    graph: KnowledgeGraph,
    *,
    device: str = "cpu",
    index: Path | None = None,
    progress: bool = False,
) -> NDArray[np.float32]:
    """Return the table of an exported model, computed, or memory-mapped from a directory that an earlier call wrote.

    Args:
        path: the exported directory.
        encoder: its encoder.
        graph: the graph.
        device: where the graph encoder runs, the device of `encoder`.
        index: the directory; memory-mapped if it exists, otherwise written; None keeps the table in memory only.
        progress: show a progress bar.

    Raises:
        InputError: the directory is not an exported model with a graph encoder, or the index holds other vectors.
    """
    graph_encoder, recipe = load_graph_encoder(find_model(path), encoder.width, graph)
    if not isinstance(graph_encoder, GraphEncoder):
        raise InputError("graph views need a model with a graph encoder; this one reads neighborhoods as text")
    graph_encoder = graph_encoder.to(available_device(device))
    identity = _identity(encoder, graph_encoder, graph, recipe.data.fan_out)
    if index is None or not (index / GRAPH_VIEWS.marker).exists():
        preferred = [graph.preferred_name(concept) for concept in range(graph.num_concepts)]
        names = encoder.encode(preferred, normalize=False, progress=progress)
        table = graph_view_table(names, graph_encoder, graph, recipe.data.fan_out)
        if index is None:
            return table
        with published_directory(index, GRAPH_VIEWS) as working:
            np.save(working / "vectors.npy", table)
            write_json(working / "index.json", identity)
    if read_json(index / "index.json") != identity:
        raise InputError(
            f"{index}: holds the graph views of another graph or model; remove it, or name another directory"
        )
    shape = (graph.num_concepts, encoder.width)
    return open_npy(index / "vectors.npy", np.float32, shape, f"remove {index} and run the command again")


def _identity(encoder: Encoder, graph_encoder: torch.nn.Module, graph: KnowledgeGraph, fan_out: int) -> dict[str, Any]:
    digest = hashlib.sha256()
    for parameter in (next(iter(encoder.model.parameters())), *graph_encoder.parameters()):
        digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return {"graph": graph.fingerprint, "model": digest.hexdigest(), "fan_out": fan_out, "samples": _SAMPLES}


def _views(
    graph_encoder: GraphEncoder,
    graph: KnowledgeGraph,
    names: torch.Tensor,
    concept_ids: NDArray[np.int64],
    fan_out: int,
    sample: int,
) -> torch.Tensor:
    """Return unit vectors of neighborhoods, float32 [n, d]."""
    keys = derive(sample, concept_ids)
    neighbors, relations = sample_neighbors(graph, concept_ids, fan_out, keys)
    stored = neighbors >= 0
    degrees = stored.sum(axis=1)
    edges = np.stack([np.repeat(concept_ids, degrees), relations[stored], neighbors[stored]], axis=1).astype(np.int32)
    sampled = sample_ego_graphs(concept_ids, keys, edges, starts(degrees), degrees, fan_out, graph.num_relations)
    features = names if graph_encoder.concepts is None else graph_encoder.concepts.weight
    device = features.device
    nodes = graph_encoder(
        features[torch.from_numpy(sampled.concept_ids).to(device)],
        torch.from_numpy(sampled.edge_index).to(device),
        torch.from_numpy(sampled.edge_relations).to(device),
    )
    return torch.nn.functional.normalize(nodes[torch.from_numpy(sampled.targets).to(device)].float(), dim=1)
