"""Concept resolver: maps the identifiers in corpora to concepts of the graph."""

import re

from bali_ds.corpus.document import Mention
from bali_ds.graph.knowledge_graph import KnowledgeGraph

_CACHE_LIMIT = 1 << 20
_MESH_CODE = re.compile(r"[DC]\d{6,9}")

# Vocabulary of a number without prefix, by mention type.
_NUMBER_SOURCES = {"gene": "NCBIGENE", "species": "NCBI", "organism": "NCBI"}

# Semantic types (TUIs of the UMLS semantic groups) of each mention type; they decide between candidates.
_DISORDERS = "T019 T020 T033 T037 T046 T047 T048 T049 T050 T184 T190 T191"
_CHEMICALS = (
    "T103 T104 T109 T110 T111 T114 T115 T116 T118 T119 T120 T121 T122 T123 T124 T125 T126 T127 T129 T130 T131 T195 "
    "T196 T197 T200"
)
_GENES = "T028 T085 T086 T087 T088"
_ORGANISMS = "T001 T002 T004 T005 T007 T008 T010 T011 T012 T013 T014 T015 T016 T194 T204"
SEMANTIC_TYPES = {
    "disease": frozenset(_DISORDERS.split()),
    "chemical": frozenset(_CHEMICALS.split()),
    "drug": frozenset(_CHEMICALS.split()),
    "gene": frozenset(_GENES.split()),
    "species": frozenset(_ORGANISMS.split()),
    "organism": frozenset(_ORGANISMS.split()),
}


class ConceptResolver:
    """Maps the identifiers of mentions to concept ids, with a cache.

    An identifier is a concept identifier, with or without the prefix `UMLS:`, or the code of a vocabulary, which is
    given by its prefix (`MESH:`, `omim:`, `NCBI Gene:`), by its form (MeSH) or by the type of the mention (genes,
    species). Of several concepts of a code, the first with a semantic type of the mention type is used, else the
    preferred one.
    """

    def __init__(self, graph: KnowledgeGraph) -> None:
        self._graph = graph
        self._cache: dict[tuple[tuple[str, ...], str], tuple[int, ...]] = {}

    def resolve(self, mention: Mention) -> tuple[int, ...]:
        """Return the distinct concept ids of a mention's identifiers, in their order, without unknown identifiers."""
        key = mention.ids, mention.type
        known = self._cache.get(key)
        if known is None:
            if len(self._cache) > _CACHE_LIMIT:
                self._cache.clear()
            found = (self._look_up(name, mention.type.lower()) for name in mention.ids)
            known = self._cache[key] = tuple(dict.fromkeys(each for each in found if each >= 0))
        return known

    def _look_up(self, identifier: str, mention_type: str) -> int:
        own = self._graph.lookup([identifier, identifier.removeprefix("UMLS:")])
        if own.max() >= 0:
            return int(own[own >= 0][0])
        candidates = self._graph.lookup(self._cuis_of_code(identifier, mention_type)).tolist()
        wanted = SEMANTIC_TYPES.get(mention_type, frozenset())
        of_type = [each for each in candidates if wanted.intersection(self._graph.semantic_types(each))]
        return next(iter(of_type or candidates), -1)

    def _cuis_of_code(self, code: str, mention_type: str) -> list[str]:
        """Return the concept identifiers that a code maps to."""
        prefix, separator, bare = code.partition(":")
        if separator:
            return self._graph.code_to_cuis("", f"{prefix.replace(' ', '')}:{bare}")
        if _MESH_CODE.fullmatch(code):
            return self._graph.code_to_cuis("MSH", code)
        source = _NUMBER_SOURCES.get(mention_type)
        return self._graph.code_to_cuis(source, code) if source and code.isdecimal() else []
