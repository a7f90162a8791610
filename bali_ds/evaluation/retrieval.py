"""Text-to-graph and graph-to-text retrieval: recall, MRR, and alignment and uniformity of the views."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bali_ds.evaluation.bootstrap import intervals

Vectors = NDArray[np.float32]

SCORE_BYTES = 64 * 2**20


def evaluate_retrieval(
    text: Vectors, graph: Vectors, concept_ids: NDArray[np.int64], *, seed: int = 0
) -> dict[str, Any]:
    """Return R@1, R@5, R@10 and MRR of both directions with 95 % bootstrap intervals, alignment and uniformity.

    Args:
        text: float [V, d], text views.
        graph: float [V, d], graph views of the same concepts, row by row.
        concept_ids: int64 [V]; all views of the query's concept are correct answers.
        seed: seed of the bootstrap.

    Returns:
        {"n", "text_to_graph": {"r@1": {"value", "low", "high"}, ...}, "graph_to_text": ..., "alignment", "uniformity"}.
    """
    text, graph = _unit(text), _unit(graph)
    ids = np.asarray(concept_ids)
    return {
        "n": len(ids),
        "text_to_graph": intervals(_measures(retrieval_ranks(text, graph, ids, ids)), seed),
        "graph_to_text": intervals(_measures(retrieval_ranks(graph, text, ids, ids)), seed),
        "alignment": alignment(text, graph),
        "uniformity": {"text": uniformity(text), "graph": uniformity(graph)},
    }


def recall_at_1(text: Vectors, graph: Vectors, concept_ids: NDArray[np.int64]) -> float:
    """Return the fraction of text views whose nearest graph view is of their concept, as `evaluate_retrieval` does."""
    return float((retrieval_ranks(_unit(text), _unit(graph), concept_ids, concept_ids) == 1).mean())


def retrieval_ranks(
    queries: Vectors, keys: Vectors, query_ids: NDArray[np.int64], key_ids: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the rank, from 1, of the best key with the query's id: int64 [n].

    Other keys with an equal score are ranked before it, so that constant vectors earn nothing. Every query id must be
    among the key ids.
    """
    ranks = np.empty(len(queries), np.int64)
    block = max(1, SCORE_BYTES // (8 * len(keys)))
    for start in range(0, len(queries), block):
        rows = slice(start, start + block)
        scores = queries[rows] @ keys.T
        correct = query_ids[rows, None] == key_ids[None, :]
        best = np.where(correct, scores, -np.inf).max(axis=1, keepdims=True)
        ranks[rows] = 1 + ((scores >= best) & ~correct).sum(axis=1)
    return ranks


def alignment(first: Vectors, second: Vectors) -> float:
    """Return the mean squared distance of paired unit vectors (Wang and Isola, ICML 2020, equation 4, alpha = 2)."""
    return float(((first - second) ** 2).sum(axis=1).mean())


def uniformity(vectors: Vectors) -> float:
    """Return the log of the mean Gaussian potential over pairs (Wang and Isola, ICML 2020, equation 5, t = 2)."""
    total = 0.0
    block = max(1, SCORE_BYTES // (8 * len(vectors)))
    for start in range(0, len(vectors), block):
        cosine = vectors[start : start + block] @ vectors.T
        total += float(np.exp(4.0 * cosine.astype(np.float64) - 4.0).sum())
    own = float(np.exp(4.0 * (vectors.astype(np.float64) ** 2).sum(axis=1) - 4.0).sum())
    pairs = len(vectors) * (len(vectors) - 1)
    return float(np.log((total - own) / pairs)) if pairs else 0.0


def _measures(ranks: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    return {**{f"r@{k}": (ranks <= k).astype(np.float64) for k in (1, 5, 10)}, "mrr": 1.0 / ranks}


def _unit(vectors: Vectors) -> Vectors:
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
