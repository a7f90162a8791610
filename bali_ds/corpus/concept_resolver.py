"""From the identifiers that linkers give to the concepts of the graph."""

import re

from bali_ds.corpus.document import Mention
from bali_ds.graph.knowledge_graph import KnowledgeGraph

_KNOWN_LIMIT = 1 << 20
_MESH_CODE = re.compile(r"[DC]\d{6,9}")

# Vocabulary of a bare number, by the type of the mention.
_NUMBERED = {"gene": "NCBIGENE", "species": "NCBI", "organism": "NCBI"}

# Semantic types (TUIs of the UMLS semantic groups) that a mention's type calls for; they choose between candidates.
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
    """Looks identifiers up in a graph, and remembers them.

    An identifier is a concept's own, with or without the prefix `UMLS:`; or a code of a vocabulary, named by its prefix
    (`MESH:`, `omim:`, `NCBI Gene:`), by its shape (MeSH) or by the type of the mention (genes, species). Of several
    concepts of a code the first counts whose semantic type suits the mention's, else the preferred one.
    """

    def __init__(self, graph: KnowledgeGraph) -> None:
        self._graph = graph
        self._known: dict[tuple[tuple[str, ...], str], tuple[int, ...]] = {}

    def concepts(self, mention: Mention) -> tuple[int, ...]:
        """Return the distinct concept ids of a mention's identifiers, unknown ones left out, in their order."""
        key = mention.ids, mention.type
        known = self._known.get(key)
        if known is None:
            if len(self._known) > _KNOWN_LIMIT:
                self._known.clear()
            found = (self._look_up(name, mention.type.lower()) for name in mention.ids)
            known = self._known[key] = tuple(dict.fromkeys(concept for concept in found if concept >= 0))
        return known

    def _look_up(self, name: str, kind: str) -> int:
        own = self._graph.lookup([name, name.removeprefix("UMLS:")])
        if own.max() >= 0:
            return int(own[own >= 0][0])
        candidates = self._graph.lookup(self._codes(name, kind)).tolist()
        wanted = SEMANTIC_TYPES.get(kind, frozenset())
        suited = [concept for concept in candidates if wanted.intersection(self._graph.semantic_types(concept))]
        return next(iter(suited or candidates), -1)

    def _codes(self, name: str, kind: str) -> list[str]:
        """Return the identifiers of the concepts that a code may mean."""
        prefix, separator, code = name.partition(":")
        if separator:
            return self._graph.code_to_cuis("", f"{prefix.replace(' ', '')}:{code}")
        if _MESH_CODE.fullmatch(name):
            return self._graph.code_to_cuis("MSH", name)
        source = _NUMBERED.get(kind)
        return self._graph.code_to_cuis(source, name) if source and name.isdecimal() else []
