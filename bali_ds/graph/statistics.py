"""What a graph holds, in numbers."""

from typing import Any

import numpy as np

from bali_ds.graph.store import KnowledgeGraph


def graph_statistics(graph: KnowledgeGraph) -> dict[str, Any]:
    """Return counts, degrees, and facts by relation and by source."""
    degrees = np.diff(graph.edge_offsets)
    names = np.diff(graph.name_offsets)
    outgoing = graph.edge_relations < graph.num_relations
    by_relation = np.bincount(graph.edge_relations[outgoing], minlength=graph.num_relations)
    by_source = np.bincount(graph.edge_sources[outgoing], minlength=len(graph.sources))
    return {
        "concepts": graph.num_concepts,
        "names": graph.num_names,
        "edges": graph.num_edges,
        "relations": graph.num_relations,
        "fingerprint": graph.fingerprint,
        "isolated": int((degrees == 0).sum()),
        "degree": {"mean": float(degrees.mean()), "median": float(np.median(degrees)), "max": int(degrees.max())},
        "names_per_concept": {"mean": float(names.mean()), "median": float(np.median(names)), "max": int(names.max())},
        "edges_by_relation": _counted(graph.relations, by_relation),
        "edges_by_source": _counted(graph.sources, by_source),
    }


def _counted(names: tuple[str, ...], counts: np.ndarray) -> dict[str, int]:
    order = np.argsort(-counts, kind="stable")
    return {names[index]: int(counts[index]) for index in order if counts[index]}
