"""Search of concepts by a part of one of their names."""

import re
from itertools import islice
from typing import Any

import numpy as np

from bali_ds.graph.knowledge_graph import KnowledgeGraph

_MOST_MATCHES = 1 << 20


def search_names(graph: KnowledgeGraph, text: str, limit: int) -> list[dict[str, Any]]:
    """Return concepts with a name that contains a text, ignoring the case of ASCII letters.

    Names that equal the text come first, then preferred names, then short ones. Of a text that occurs more than a
    million times, the first million places are compared.

    Args:
        graph: the graph.
        text: what to find.
        limit: largest number of concepts.
    """
    column = graph.name_column
    pattern = re.compile(re.escape(text.encode()), re.IGNORECASE)
    matches = islice(pattern.finditer(column.text.data), _MOST_MATCHES)
    places = np.array([match.start() for match in matches], np.int64)
    name_ids = np.unique(np.searchsorted(column.offsets, places, side="right") - 1)
    found: dict[int, tuple[tuple[bool, bool, int], str]] = {}
    for name_id in name_ids.tolist():
        name = graph.name(name_id)
        if not pattern.search(name.encode()):
            continue  # the text spans two names
        concept_id = int(np.searchsorted(graph.name_offsets, name_id, side="right")) - 1
        is_preferred = int(graph.name_offsets[concept_id]) == name_id
        rank = (name.lower() != text.lower(), not is_preferred, len(name))
        found[concept_id] = min(found.get(concept_id, (rank, name)), (rank, name))
    best = sorted(found.items(), key=lambda item: (item[1], item[0]))[:limit]
    return [
        {
            "cui": graph.cui(concept_id),
            "name": graph.preferred_name(concept_id),
            "found": name,
            "semantic_types": list(graph.semantic_types(concept_id)),
        }
        for concept_id, (_, name) in best
    ]
