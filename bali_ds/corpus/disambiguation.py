"""Disambiguation: which concept a name refers to when several share it or it is valid in upper case only."""

from collections import Counter
from collections.abc import Sequence

from bali_ds.corpus.name_index import NameIndex
from bali_ds.graph.knowledge_graph import KnowledgeGraph

Candidates = tuple[int, ...]
"""Concept ids that a mention may refer to, best first."""


class Disambiguator:
    """Chooses among the concepts that share a name.

    Concepts with this preferred name take precedence. Of several the one wins that the unambiguous mentions of the
    document refer to most often, else the one whose semantic type they have most often, else the one with most facts.
    Types decide only if all candidates have one, since a vocabulary without types would lose every choice.
    """

    def __init__(self, name_index: NameIndex, graph: KnowledgeGraph) -> None:
        self._name_index = name_index
        self._graph = graph
        self._candidates: dict[tuple[int, int], Candidates] = {}
        self._types: dict[int, tuple[str, ...]] = {}

    def candidates(self, row: int, spelling: int) -> Candidates:
        """Return the candidates of a row of the name index.

        Args:
            row: row of the name index.
            spelling: `symbol_spelling` of the mention.
        """
        key = row, spelling
        if key not in self._candidates:
            index = self._name_index
            own = slice(int(index.offsets[row]), int(index.offsets[row + 1]))
            columns = (index.concept_ids[own].tolist(), index.spellings[own].tolist(), index.preferred[own].tolist())
            valid = [
                (concept_id, preferred)
                for concept_id, valid_spelling, preferred in zip(*columns, strict=True)
                if valid_spelling in (0, spelling)
            ]
            best = [concept_id for concept_id, preferred in valid if preferred]
            self._candidates[key] = tuple(dict.fromkeys(best or [concept_id for concept_id, _ in valid]))
        return self._candidates[key]

    def choose(self, mentions: Sequence[Candidates]) -> list[int]:
        """Return the concept id of each mention of one document."""
        unambiguous = Counter([candidates[0] for candidates in mentions if len(candidates) == 1])
        if unambiguous.total() == len(mentions):
            return [candidates[0] for candidates in mentions]
        types: dict[str, int] = {}
        for concept_id, count in unambiguous.items():
            for each in self.types(concept_id):
                types[each] = types.get(each, 0) + count
        shared = {candidates for candidates in mentions if len(candidates) > 1}
        chosen = {candidates: self._best(candidates, unambiguous, types) for candidates in shared}
        return [candidates[0] if len(candidates) == 1 else chosen[candidates] for candidates in mentions]

    def types(self, concept_id: int) -> tuple[str, ...]:
        """Return the semantic types of a concept."""
        if concept_id not in self._types:
            self._types[concept_id] = self._graph.semantic_types(concept_id)
        return self._types[concept_id]

    def _best(self, candidates: Candidates, unambiguous: dict[int, int], types: dict[str, int]) -> int:
        counts = [unambiguous.get(concept_id, 0) for concept_id in candidates]
        most = max(counts)
        tied = [concept_id for concept_id, count in zip(candidates, counts, strict=True) if count == most]
        types_of_tied = [self.types(concept_id) for concept_id in tied]
        if len(tied) == 1 or not types or not all(types_of_tied):
            return tied[0]
        scores = [max(types.get(each, 0) for each in own) for own in types_of_tied]
        return tied[scores.index(max(scores))]
