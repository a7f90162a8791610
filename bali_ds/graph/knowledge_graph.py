"""Knowledge graph on disk: a directory of memory-mapped columns that all processes of a host share."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bali_ds.errors import InputError
from bali_ds.files import sha256_file
from bali_ds.graph.columns import TextColumn, open_column, search
from bali_ds.graph.identifiers import split_code, split_vocabularies
from bali_ds.graph.manifest import read_manifest
from bali_ds.graph.packed_adjacency import AdjacencyColumn, PackedAdjacency


class KnowledgeGraph:
    """Concepts, their names and the facts between them, memory-mapped.

    C concepts, N names, E facts, R relations. Concept ids are ranks in the byte order of the UTF-8 concept
    identifiers ("CUIs", whatever the vocabulary), so equal sources give equal ids. A graph pickles as its path.

    Attributes:
        path: the directory.
        num_concepts: C.
        num_names: N.
        num_edges: E, each fact counted once.
        num_relations: R, each relation counted in one direction.
        fingerprint: hexadecimal SHA-256 over identifiers, names and facts.
        name_offsets: int64 [C + 1]; concept c has the names name_offsets[c] to name_offsets[c + 1] - 1, the
            preferred one first.
        edge_offsets: uint32 or int64 [C + 1]; the adjacency list of concept v takes the positions edge_offsets[v] to
            edge_offsets[v + 1] - 1.
        adjacency: all adjacency lists, bit-packed; the next three attributes read one field of them.
        edge_targets: int32 [2E], the neighbor u at each position of the list of v.
        edge_relations: int32 [2E]; r < R is the fact (v, r, u), r + R the fact (u, r, v).
        edge_sources: uint8 or uint16 [2E], index into `sources`.
        sources: the sources of facts: a vocabulary, or several that state the same fact, joined by bars.
        vocabularies: the names of all vocabularies that state facts.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.fingerprint: str = manifest["fingerprint"]
        self.relations: tuple[str, ...] = tuple(manifest["relations"])
        self.inverse_relations: tuple[str, ...] = tuple(manifest["inverse_relations"])
        self.sources: tuple[str, ...] = tuple(manifest["sources"])
        self.vocabularies = tuple(sorted({each for source in self.sources for each in split_vocabularies(source)}))
        self._types: tuple[str, ...] = tuple(manifest["semantic_types"])
        self._columns = {
            name: open_column(path, name, entry["dtype"], entry["length"])
            for name, entry in manifest["columns"].items()
        }
        self._code_sources: list[str] = manifest["code_sources"]
        self._digests = {name: entry["sha256"] for name, entry in manifest["columns"].items()}
        self._cuis = self._columns["concepts.cuis"]
        self._names = self._text("names")
        self._codes = self._text("codes")
        self._definitions = self._text("definitions")
        self.name_offsets = self._columns["concepts.names"]
        self.edge_offsets = self._columns["edges.offsets"]
        self.num_concepts = self._cuis.size
        self.num_names = len(self._names)
        self.num_relations = len(self.relations)
        self.adjacency = self._adjacency()
        self.num_edges = self.adjacency.size // 2
        self.edge_targets = AdjacencyColumn(self.adjacency)
        self.edge_relations = AdjacencyColumn(self.adjacency, self.adjacency.relations)
        self.edge_sources = AdjacencyColumn(self.adjacency, self.adjacency.sources)

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = False) -> "KnowledgeGraph":
        """Map a graph into memory.

        Headers and sizes are always checked, contents only with `verify`.

        Args:
            path: the directory that `build_graph` wrote.
            verify: read every column and compare its SHA-256 with the manifest.

        Raises:
            InputError: the directory is not a graph of this format, or the graph is damaged.
        """
        path = Path(path)
        graph = cls(path, read_manifest(path))
        graph._check_lengths()
        if verify:
            for name, digest in graph._digests.items():
                if sha256_file(path / f"{name}.npy") != digest:
                    raise InputError(f"{path / name}.npy: differs from its SHA-256 in the manifest; build it again")
        return graph

    @cached_property
    def named_concepts(self) -> NDArray[np.int64]:
        """The concepts that have names, int64, ascending."""
        return np.flatnonzero(np.diff(self.name_offsets))

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self).open, (self.path,))

    def cui(self, concept_id: int) -> str:
        """Return the identifier of a concept.

        Raises:
            IndexError: the concept id is not in the graph.
        """
        if not 0 <= concept_id < self.num_concepts:
            raise IndexError(f"concept id {concept_id} of {self.num_concepts}")
        return self._cuis[concept_id].decode("utf-8", "replace")

    def lookup(self, cuis: Sequence[str]) -> NDArray[np.int32]:
        """Return the concept ids of identifiers, int32 [n], -1 for unknown identifiers.

        A retired identifier yields the concept that it was merged into.
        """
        wanted = [cui.encode() for cui in cuis]
        found = _search(self._cuis, wanted)
        retired = _search(self._columns["retired.cuis"], wanted)
        merged = (found < 0) & (retired >= 0)
        found[merged] = self._concept_ids("retired.concepts", retired[merged])
        return found

    def code_to_cuis(self, source: str, code: str) -> list[str]:
        """Return the identifiers of all concepts that a vocabulary's code maps to, the preferred one first.

        Args:
            source: the vocabulary as the UMLS or others abbreviate it ("MSH", "mesh"); "" where the code has a prefix.
            code: the code, with or without a prefix ("D003920", "MESH:D003920").
        """
        source, code = split_code(source, code)
        if source not in self._code_sources:
            return []
        number = self._code_sources.index(source)
        first, last = np.searchsorted(self._columns["codes.sources"], [number, number + 1]).tolist()
        start = bisect_left(self._codes, code, first, last)
        end = bisect_right(self._codes, code, start, last)
        return [self.cui(concept_id) for concept_id in self._concept_ids("codes.concepts", slice(start, end)).tolist()]

    def definitions(self, concept_id: int) -> list[str]:
        """Return the definitions of a concept."""
        return [self._definitions[index] for index in range(*self._row("concepts.definitions", concept_id))]

    def name(self, name_id: int) -> str:
        """Return a name by its id."""
        return self._names[name_id]

    def names(self, concept_id: int) -> list[str]:
        """Return all names of a concept, the preferred one first."""
        return [self._names[name_id] for name_id in range(*self._row("concepts.names", concept_id))]

    def preferred_name(self, concept_id: int) -> str:
        """Return the preferred name of a concept, or its identifier if it has no name."""
        start, end = self._row("concepts.names", concept_id)
        return self._names[start] if start < end else self.cui(concept_id)

    def semantic_types(self, concept_id: int) -> tuple[str, ...]:
        """Return the semantic types (TUIs in the UMLS) of a concept, sorted."""
        start, end = self._row("concepts.types", concept_id)
        types = self._columns["types"][start:end]
        if types.size and types.max() >= len(self._types):
            raise self._damaged("types")
        return tuple(self._types[index] for index in types)

    def relation_name(self, relation: int) -> str:
        """Return the name of relation id 0 to 2R - 1; ids from R on are the inverses."""
        return (self.relations + self.inverse_relations)[relation]

    @property
    def name_column(self) -> TextColumn:
        """All names in one buffer."""
        return self._names

    def _text(self, name: str) -> TextColumn:
        return TextColumn(self._columns[f"{name}.text"], self._columns[f"{name}.offsets"], str(self.path / name))

    def _adjacency(self) -> PackedAdjacency:
        relations, sources = self._columns["kinds.relations"], self._columns["kinds.sources"]
        if (relations >= self.num_relations).any():
            raise self._damaged("kinds.relations")
        if sources.size != relations.size or (sources >= len(self.sources)).any():
            raise self._damaged("kinds.sources")
        both = relations.astype(np.int32)
        return PackedAdjacency(
            self._columns["edges.entries"],
            int(self.edge_offsets[-1]) if self.edge_offsets.size else 0,
            self.num_concepts,
            np.concatenate([both, both + self.num_relations]),
            np.concatenate([sources, sources]),
            self.path / "edges.entries.npy",
        )

    def _row(self, name: str, concept_id: int) -> tuple[int, int]:
        if not 0 <= concept_id < self.num_concepts:
            raise IndexError(f"concept id {concept_id} of {self.num_concepts}")
        offsets = self._columns[name]
        start, end = int(offsets[concept_id]), int(offsets[concept_id + 1])
        if not 0 <= start <= end <= int(offsets[-1]):
            raise self._damaged(name)
        return start, end

    def _concept_ids(self, name: str, rows: slice | NDArray[np.int32]) -> NDArray[np.int32]:
        concept_ids = self._columns[name][rows]
        if concept_ids.size and not 0 <= concept_ids.min() <= concept_ids.max() < self.num_concepts:
            raise self._damaged(name)
        return concept_ids

    def _damaged(self, name: str) -> InputError:
        return InputError(f"{self.path / name}.npy: is damaged; build the graph again")

    def _check_lengths(self) -> None:
        """Refuse columns whose lengths contradict each other; `open_column` has compared each with its file."""
        size = {name: column.size for name, column in self._columns.items()}
        rows = self.num_concepts + 1
        expected = {
            "concepts.names": (rows, self.num_names),
            "concepts.types": (rows, size["types"]),
            "concepts.definitions": (rows, len(self._definitions)),
            "edges.offsets": (rows, self.adjacency.size),
            "names.offsets": (self.num_names + 1, size["names.text"]),
            "definitions.offsets": (len(self._definitions) + 1, size["definitions.text"]),
            "codes.offsets": (len(self._codes) + 1, size["codes.text"]),
        }
        for name, (length, last) in expected.items():
            column = self._columns[name]
            if length < 1 or size[name] != length or column[0] != 0 or column[-1] != last:
                raise self._damaged(name)
        equal = (
            ("codes.sources", "codes.concepts"),
            ("retired.cuis", "retired.concepts"),
        )
        for first, second in equal:
            if size[first] != size[second]:
                raise self._damaged(second)
        code_sources = self._columns["codes.sources"]
        if code_sources.size != len(self._codes) or (code_sources[-1:] >= len(self._code_sources)).any():
            raise self._damaged("codes.sources")


def _search(ordered: NDArray[Any], wanted: Sequence[bytes]) -> NDArray[np.int32]:
    width = ordered.dtype.itemsize
    keys = np.array([cui if len(cui) <= width else b"" for cui in wanted], ordered.dtype)
    return np.where(keys == b"", np.int32(-1), search(ordered, keys))
