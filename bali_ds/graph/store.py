"""A concept graph on disk: one directory of memory-mapped columns that every process on a host shares."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bali_ds.errors import InputError
from bali_ds.files import read_json, sha256_file
from bali_ds.graph.columns import TextColumn, open_column

FORMAT_VERSION = 1
_LARGEST_MANIFEST = 64 * 2**20


class KnowledgeGraph:
    """Concepts, their names and the facts between them.

    C concepts, N names, E facts, R relations. Concept ids are ranks in the byte order of the UTF-8 concept
    identifiers ("CUIs", whatever the vocabulary), so equal sources give equal ids. The value pickles as its path.

    Attributes:
        path: the directory.
        num_concepts: C.
        num_names: N.
        num_edges: E, each fact counted once.
        num_relations: R, each relation counted in one direction.
        fingerprint: hexadecimal SHA-256 over everything in the store.
        name_offsets: int64 [C + 1]; concept c has the names name_offsets[c] to name_offsets[c + 1] - 1, the
            preferred one first, the others in byte order.
        edge_offsets: int64 [C + 1]; row v of the neighbour lists is edge_offsets[v] to edge_offsets[v + 1] - 1.
        edge_targets: int32 [2E], the neighbour u of each entry of row v.
        edge_relations: uint16 [2E]; r < R stands for the fact (v, r, u), r + R for the fact (u, r, v).
        edge_sources: uint8 or uint16 [2E], index into `sources`.
        sources: names of the vocabularies that state facts.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.fingerprint: str = manifest["fingerprint"]
        self.relations: tuple[str, ...] = tuple(manifest["relations"])
        self.inverse_relations: tuple[str, ...] = tuple(manifest["inverse_relations"])
        self.sources: tuple[str, ...] = tuple(manifest["sources"])
        self._types: tuple[str, ...] = tuple(manifest["semantic_types"])
        self._columns = {
            name: open_column(path, name, entry["dtype"], entry["length"])
            for name, entry in manifest["columns"].items()
        }
        self._digests = {name: entry["sha256"] for name, entry in manifest["columns"].items()}
        self._cuis = self._columns["concepts.cuis"]
        self._names = self._text("names")
        self.name_offsets = self._columns["concepts.names"]
        self._type_offsets = self._columns["concepts.types"]
        self._type_ids = self._columns["types"]
        self.edge_offsets = self._columns["edges.offsets"]
        self.edge_targets = self._columns["edges.targets"]
        self.edge_relations = self._columns["edges.relations"]
        self.edge_sources = self._columns["edges.sources"]
        self.num_concepts = self._cuis.size
        self.num_names = len(self._names)
        self.num_edges = self.edge_targets.size // 2
        self.num_relations = len(self.relations)

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = False) -> "KnowledgeGraph":
        """Map a graph into memory.

        Headers and sizes are checked, contents only when asked.

        Args:
            path: the directory that `build_graph` wrote.
            verify: read every column and compare its SHA-256 with the manifest.

        Raises:
            InputError: the directory holds no graph of this format, or it is damaged.
        """
        path = Path(path)
        graph = cls(path, _read_manifest(path))
        graph._check_lengths()
        if verify:
            for name, digest in graph._digests.items():
                if sha256_file(path / f"{name}.npy") != digest:
                    raise InputError(f"{path / name}.npy: is not what was built; build the graph again")
        return graph

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self).open, (self.path,))

    def cui(self, concept: int) -> str:
        """Return the identifier of a concept."""
        return self._cuis[concept].decode("utf-8", "replace")

    def lookup(self, cuis: Sequence[str]) -> NDArray[np.int32]:
        """Return the concept ids of identifiers, int32 [n], -1 where the graph has none."""
        width = self._cuis.dtype.itemsize
        wanted = [cui.encode() for cui in cuis]
        keys = np.array([cui if len(cui) <= width else b"" for cui in wanted], self._cuis.dtype)
        if not self.num_concepts:
            return np.full(len(wanted), -1, np.int32)
        found = np.minimum(np.searchsorted(self._cuis, keys), self.num_concepts - 1)
        return np.where((self._cuis[found] == keys) & (keys != b""), found, -1).astype(np.int32)

    def name(self, index: int) -> str:
        """Return one name by its id."""
        return self._names[index]

    def names(self, concept: int) -> list[str]:
        """Return all names of a concept, the preferred one first."""
        return [self._names[index] for index in range(*self._row(self.name_offsets, concept))]

    def preferred_name(self, concept: int) -> str:
        """Return the preferred name of a concept; its identifier where it has no name."""
        start, end = self._row(self.name_offsets, concept)
        return self._names[start] if start < end else self.cui(concept)

    def semantic_types(self, concept: int) -> tuple[str, ...]:
        """Return the semantic types (TUIs in the UMLS) of a concept, sorted."""
        start, end = self._row(self._type_offsets, concept)
        return tuple(self._types[index] for index in self._type_ids[start:end])

    def relation_name(self, relation: int) -> str:
        """Return the name of relation id 0 to 2R - 1; ids from R on are the inverses."""
        return (self.relations + self.inverse_relations)[relation]

    def _text(self, name: str) -> TextColumn:
        return TextColumn(self._columns[f"{name}.text"], self._columns[f"{name}.offsets"], str(self.path / name))

    def _row(self, offsets: NDArray[Any], concept: int) -> tuple[int, int]:
        if not 0 <= concept < self.num_concepts:
            raise IndexError(f"concept {concept} of {self.num_concepts}")
        return int(offsets[concept]), int(offsets[concept + 1])

    def _check_lengths(self) -> None:
        rows = self.num_concepts + 1
        entries = self.edge_targets.size
        expected = {
            "concepts.names": (rows, self.num_names),
            "concepts.types": (rows, self._type_ids.size),
            "edges.offsets": (rows, entries),
            "names.offsets": (self.num_names + 1, self._names.text.size),
        }
        for name, (length, last) in expected.items():
            column = self._columns[name]
            if column.size != length or column[0] != 0 or column[-1] != last:
                raise InputError(f"{self.path / name}.npy: does not fit the other columns; build the graph again")
        if self.edge_relations.size != entries or self.edge_sources.size != entries or entries % 2:
            raise InputError(f"{self.path}: edge columns differ in length; build the graph again")


def manifest_fingerprint(manifest: dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest, its own fingerprint aside; column digests are part of it."""
    content = {key: value for key, value in manifest.items() if key != "fingerprint"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / "manifest.json"
    if not file.is_file():
        raise InputError(f"{path}: holds no graph (no manifest.json); write one with bali-ds graph build")
    if file.stat().st_size > _LARGEST_MANIFEST:
        raise InputError(f"{file}: is too large for a manifest; build the graph again")
    manifest = read_json(file)
    if not isinstance(manifest, dict) or "format_version" not in manifest:
        raise InputError(f"{file}: is no manifest of a graph; build the graph again")
    if manifest["format_version"] != FORMAT_VERSION:
        raise InputError(
            f"{file}: has format version {manifest['format_version']}, this program reads {FORMAT_VERSION}; "
            "build the graph again"
        )
    if manifest.get("fingerprint") != manifest_fingerprint(manifest):
        raise InputError(f"{file}: does not match its fingerprint; build the graph again")
    return manifest
