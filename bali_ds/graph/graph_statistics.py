"""Statistics of a knowledge graph, and how much of a corpus it covers."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bali_ds.graph.identifiers import split_vocabularies
from bali_ds.graph.knowledge_graph import KnowledgeGraph

_PERCENTILES = {"median": 50, "p90": 90, "p99": 99, "max": 100}


def graph_statistics(graph: KnowledgeGraph) -> dict[str, Any]:
    """Return counts, degrees, connected components, names per concept, and facts by relation and by source.

    A fact of several sources counts for each of them.
    Scripts rely on the keys concepts, names, edges, relations and fingerprint; edges count each fact once.
    """
    offsets = graph.edge_offsets.astype(np.int64)
    degrees = offsets[1:] - offsets[:-1]
    relations = graph.edge_relations[:]
    outgoing = relations < graph.num_relations
    by_relation = np.bincount(relations[outgoing], minlength=graph.num_relations)
    by_source = dict.fromkeys(graph.vocabularies, 0)
    counts = np.bincount(graph.edge_sources[:][outgoing], minlength=len(graph.sources)).tolist()
    for source, count in zip(graph.sources, counts, strict=True):
        for name in split_vocabularies(source):
            by_source[name] += count
    hubs = np.argsort(-degrees, kind="stable")[:5]
    return {
        "concepts": graph.num_concepts,
        "names": graph.num_names,
        "edges": graph.num_edges,
        "relations": graph.num_relations,
        "fingerprint": graph.fingerprint,
        "isolated": int((degrees == 0).sum()),
        "bytes": sum(file.stat().st_size for file in graph.path.iterdir()),
        "components": _components(graph),
        "degree": _distribution(degrees),
        "names_per_concept": _distribution(np.diff(graph.name_offsets)),
        "hubs": {f"{graph.cui(hub)} {graph.preferred_name(hub)}": int(degrees[hub]) for hub in hubs.tolist()},
        "edges_by_relation": _counted(graph.relations, by_relation),
        "edges_by_source": _counted(graph.vocabularies, np.array(list(by_source.values()), np.int64)),
    }


def coverage(graph: KnowledgeGraph, documents: Iterable[Sequence[Sequence[int]]]) -> dict[str, int]:
    """Return how many documents and mentions of a corpus are linked to the graph.

    Args:
        graph: the graph.
        documents: for each document its mentions, for each mention its concept ids, empty where it is not linked.
    """
    names = ("documents", "documents_with_a_concept", "mentions", "known_mentions", "known_mentions_with_edges")
    counts = dict.fromkeys(names, 0)
    connected = np.diff(graph.edge_offsets) > 0
    seen: set[int] = set()
    for mentions in documents:
        known = [concept_ids for concept_ids in mentions if concept_ids]
        counts["documents"] += 1
        counts["documents_with_a_concept"] += bool(known)
        counts["mentions"] += len(mentions)
        counts["known_mentions"] += len(known)
        counts["known_mentions_with_edges"] += sum(bool(connected[list(concept_ids)].any()) for concept_ids in known)
        seen.update(each for concept_ids in known for each in concept_ids)
    return {**counts, "distinct_concepts": len(seen)}


def _components(graph: KnowledgeGraph) -> dict[str, int]:
    """Return the number of connected components and the size of the largest, isolated concepts included."""
    labels = np.arange(graph.num_concepts, dtype=np.int32)
    connected = np.diff(graph.edge_offsets) > 0
    starts = graph.edge_offsets[:-1][connected]
    targets = graph.edge_targets[:]
    while starts.size:
        # Each concept takes the smallest label in its neighborhood, then that label's label: reach doubles each round.
        lowest = labels.copy()
        lowest[connected] = np.minimum(labels[connected], np.minimum.reduceat(labels[targets], starts))
        lowest = lowest[lowest]
        if np.array_equal(lowest, labels):
            break
        labels = lowest
    sizes = np.bincount(labels)
    return {"number": int((sizes > 0).sum()), "largest": int(sizes.max())}


def _distribution(values: NDArray[np.int64]) -> dict[str, float]:
    found = np.percentile(values, list(_PERCENTILES.values()))
    return {"mean": float(values.mean()), **dict(zip(_PERCENTILES, found.tolist(), strict=True))}


def _counted(names: tuple[str, ...], counts: NDArray[np.int64]) -> dict[str, int]:
    order = np.argsort(-counts, kind="stable")
    return {names[index]: int(counts[index]) for index in order if counts[index]}
