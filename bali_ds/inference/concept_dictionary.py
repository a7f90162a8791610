"""Dictionary of concept names for entity linking."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bali_ds.errors import InputError
from bali_ds.files import nonempty_lines
from bali_ds.graph.knowledge_graph import KnowledgeGraph

_BETWEEN_IDENTIFIERS = re.compile(r"[|+;,]")


def split_identifiers(text: str) -> tuple[str, ...]:
    """Return the concept identifiers of a field: |, +, ; or a comma joins several, UMLS: before one is removed."""
    parts = (part.strip().removeprefix("UMLS:") for part in _BETWEEN_IDENTIFIERS.split(text))
    return tuple(part for part in parts if part)


@dataclass(frozen=True)
class ConceptDictionary:
    """Distinct names, and the concepts of each name.

    Attributes:
        names: distinct names, in the order of the file.
        cuis: distinct concept identifiers.
        offsets: int64 [names + 1]; name i belongs to `concepts[offsets[i]:offsets[i + 1]]`.
        concepts: int64, indices into `cuis`.
    """

    names: Sequence[str]
    cuis: Sequence[str]
    offsets: NDArray[np.int64]
    concepts: NDArray[np.int64]

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, Sequence[str]]]) -> "ConceptDictionary":
        """Return the dictionary of (name, concept identifiers) pairs; repeated names are merged."""
        of_name: dict[str, dict[int, None]] = {}
        of_cui: dict[str, int] = {}
        for name, cuis in pairs:
            concepts = of_name.setdefault(name, {})
            for cui in cuis:
                concepts[of_cui.setdefault(cui, len(of_cui))] = None
        sizes = np.fromiter(map(len, of_name.values()), np.int64, len(of_name))
        return cls(
            names=list(of_name),
            cuis=list(of_cui),
            offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)]),
            concepts=np.array([concept for concepts in of_name.values() for concept in concepts], np.int64),
        )

    def rows_of(self, identifiers: Iterable[str]) -> list[int]:
        """Return the indices into `cuis` of concept identifiers, without those that the dictionary lacks."""
        return [self._rows[each] for each in identifiers if each in self._rows]

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {cui: row for row, cui in enumerate(self.cuis)}

    @cached_property
    def names_by_concept(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Names of one concept after the other, int64, and the bounds of each concept in them, int64 [cuis + 1]."""
        name_of = np.repeat(np.arange(len(self.names)), np.diff(self.offsets))
        sizes = np.bincount(self.concepts, minlength=len(self.cuis))
        return name_of[np.argsort(self.concepts, kind="stable")], np.append(0, np.cumsum(sizes))

    def names_of(self, concept: int) -> NDArray[np.int64]:
        """Return the names of a concept, indices into `names` in ascending order."""
        names, bounds = self.names_by_concept
        return names[bounds[concept] : bounds[concept + 1]]

    def concepts_of(self, name: int) -> list[str]:
        """Return the identifiers of the concepts of the name at an index."""
        return [self.cuis[concept] for concept in self.concepts[self.offsets[name] : self.offsets[name + 1]]]


def read_dictionary(path: Path) -> ConceptDictionary:
    """Read a plain or gzip file of `CUI||name` lines, see `split_identifiers`, or all names of a graph.

    Args:
        path: the file, or the directory of a graph.

    Raises:
        InputError: the file or graph cannot be read, a line is malformed, or there are no lines.
    """
    if path.is_dir():
        return graph_dictionary(KnowledgeGraph.open(path))

    def pairs() -> Iterator[tuple[str, Sequence[str]]]:
        for number, line in nonempty_lines(path):
            text, _, name = line.partition("||")
            identifiers = split_identifiers(text)
            if not (identifiers and name):
                raise InputError(f"{path}:{number}: expected CUI||name, found {line[:60]!r}")
            yield name, identifiers

    dictionary = ConceptDictionary.of(pairs())
    if not dictionary.names:
        raise InputError(f"{path}: holds no names; write CUI||name lines")
    return dictionary


def graph_dictionary(graph: KnowledgeGraph) -> ConceptDictionary:
    """Return the dictionary of all names of a graph."""
    return ConceptDictionary.of(
        (name, [graph.cui(concept)]) for concept in range(graph.num_concepts) for name in graph.names(concept)
    )
