"""What the space of concept names looks like: a map of some, and the nearest others of a few."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bali_ds.evaluation.encodes import Encodes
from bali_ds.evaluation.semantic_groups import semantic_group
from bali_ds.graph.knowledge_graph import KnowledgeGraph

CONCEPTS, DRAWN, EXAMPLES, NEIGHBORS = 4000, 800, 12, 4


def describe_embedding(encoders: Mapping[str, Encodes], graph: KnowledgeGraph, seed: int = 0) -> dict[str, Any]:
    """Draw concepts of a graph and place their preferred names as each encoder does.

    Args:
        encoders: by name.
        graph: the concepts.
        seed: of the draw and of the maps.

    Returns:
        "groups": the semantic group of each concept on the map; "names"; "maps": {encoder: [[x, y], ...]} by t-SNE
        (van der Maaten and Hinton, JMLR 9, 2008) of the vectors, each axis in 0..1; "neighbors":
        [{"name", encoder: [{"name", "cosine"}, ...], ...}, ...].
    """
    draw = np.random.default_rng(seed)
    concepts = draw.permutation(graph.num_concepts)[:CONCEPTS].tolist()
    names = [graph.preferred_name(concept) for concept in concepts]
    vectors = {name: encoder.encode(names) for name, encoder in encoders.items()}
    examples = [
        {"name": names[row], **{model: _nearest(row, names, found) for model, found in vectors.items()}}
        for row in range(min(EXAMPLES, len(names)))
    ]
    return {
        "groups": [semantic_group(graph.semantic_types(concept)) for concept in concepts[:DRAWN]],
        "names": names[:DRAWN],
        "maps": {model: _placed(found[:DRAWN], seed) for model, found in vectors.items()},
        "neighbors": examples,
    }


def _nearest(row: int, names: list[str], vectors: NDArray[np.float32]) -> list[dict[str, Any]]:
    cosines = vectors @ vectors[row]
    order = [other for other in np.argsort(-cosines, kind="stable")[: NEIGHBORS + 1].tolist() if other != row]
    return [{"name": names[other], "cosine": round(float(cosines[other]), 3)} for other in order[:NEIGHBORS]]


def _placed(vectors: NDArray[np.float32], seed: int) -> list[list[float]]:
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if len(vectors) < 3:
        return [[0.5, 0.5] for _ in vectors]
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    with threadpool_limits(1):  # a thousand short steps: more threads wait for each other twenty times as long
        places = TSNE(init="pca", metric="cosine", perplexity=perplexity, random_state=seed).fit_transform(vectors)
    low, high = places.min(axis=0), places.max(axis=0)
    scaled: list[list[float]] = np.round((places - low) / np.maximum(high - low, 1e-9), 4).tolist()
    return scaled
