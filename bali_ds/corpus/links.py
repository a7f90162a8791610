"""From the identifiers that linkers give to the concepts of the graph."""

import numpy as np

from bali_ds.graph.store import KnowledgeGraph


class ConceptResolver:
    """Looks identifiers up in a graph, each distinct one once.

    An identifier is taken as it stands, then without a `UMLS:` prefix.
    """

    def __init__(self, graph: KnowledgeGraph) -> None:
        self._graph = graph
        self._known: dict[str, int] = {}

    def concepts(self, ids: tuple[str, ...]) -> tuple[int, ...]:
        """Return the distinct concept ids of a mention's identifiers, unknown ones left out, in their order."""
        found = (self._concept(name) for name in ids)
        return tuple(dict.fromkeys(concept for concept in found if concept >= 0))

    def _concept(self, name: str) -> int:
        concept = self._known.get(name)
        if concept is None:
            spellings = (name, name.removeprefix("UMLS:"))
            candidates = self._graph.lookup(spellings)
            concept = int(next(iter(candidates[candidates >= 0]), np.int32(-1)))
            self._known[name] = concept
        return concept
