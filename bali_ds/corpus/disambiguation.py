"""Which concept a name means: several share it, and some hold in capitals alone."""

from collections import Counter
from collections.abc import Sequence

from bali_ds.corpus.name_index import NameIndex
from bali_ds.graph.knowledge_graph import KnowledgeGraph

Candidates = tuple[int, ...]
"""Concept ids that a mention may mean, best first."""


class Senses:
    """Chooses among the concepts of a name.

    Those whose preferred name it is go before the others. Of several that one is meant which the document mentions
    most often beyond doubt, else the one whose semantic type its other mentions have most often, else the one with
    most facts. Types count where all candidates have one: a vocabulary that gives none would lose every choice.
    """

    def __init__(self, dictionary: NameIndex, graph: KnowledgeGraph) -> None:
        self._dictionary = dictionary
        self._graph = graph
        self._candidates: dict[tuple[int, bool], Candidates] = {}
        self._types: dict[int, tuple[str, ...]] = {}

    def candidates(self, entry: int, capitals: bool) -> Candidates:
        """Return what a dictionary entry may mean where it stands in capitals or in small letters."""
        key = entry, capitals
        if key not in self._candidates:
            table = self._dictionary
            own = slice(int(table.offsets[entry]), int(table.offsets[entry + 1]))
            columns = (table.concepts[own].tolist(), table.acronyms[own].tolist(), table.preferred[own].tolist())
            held = [
                (concept, first) for concept, acronym, first in zip(*columns, strict=True) if capitals or not acronym
            ]
            best = [concept for concept, preferred in held if preferred]
            self._candidates[key] = tuple(best or [concept for concept, _ in held])
        return self._candidates[key]

    def choose(self, mentions: Sequence[Candidates]) -> list[int]:
        """Return the concept of each mention of one document."""
        certain = Counter([candidates[0] for candidates in mentions if len(candidates) == 1])
        if certain.total() == len(mentions):
            return [candidates[0] for candidates in mentions]
        types: dict[str, int] = {}
        for concept, times in certain.items():
            for kind in self.types(concept):
                types[kind] = types.get(kind, 0) + times
        shared = {candidates for candidates in mentions if len(candidates) > 1}
        chosen = {candidates: self._best(candidates, certain, types) for candidates in shared}
        return [candidates[0] if len(candidates) == 1 else chosen[candidates] for candidates in mentions]

    def types(self, concept: int) -> tuple[str, ...]:
        """Return the semantic types of a concept."""
        if concept not in self._types:
            self._types[concept] = self._graph.semantic_types(concept)
        return self._types[concept]

    def _best(self, candidates: Candidates, certain: dict[int, int], types: dict[str, int]) -> int:
        counts = [certain.get(concept, 0) for concept in candidates]
        most = max(counts)
        tied = [concept for concept, count in zip(candidates, counts, strict=True) if count == most]
        own = [self.types(concept) for concept in tied]
        if len(tied) == 1 or not types or not all(own):
            return tied[0]
        suited = [max(types.get(kind, 0) for kind in kinds) for kinds in own]
        return tied[suited.index(max(suited))]
