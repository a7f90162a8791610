"""Reader of ontologies in OBO format 1.4 and as OBO graphs in JSON, parsed by fastobo."""

import gzip
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import polars as pl

from bali_ds.bounded_reader import BoundedReader
from bali_ds.errors import InputError
from bali_ds.files import open_regular
from bali_ds.graph.identifiers import source_abbreviation, split_code
from bali_ds.graph.source import TABLES, Report, Table

LARGEST_ONTOLOGY = 1 << 30
"""Bytes, decompressed; all terms are kept in memory."""

# Clauses that a term may have several times: the key that collects them, and how to read one.
_CLAUSES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "NameClause": ("names", lambda clause: clause.name),
    "DefClause": ("definitions", lambda clause: clause.definition),
    "XrefClause": ("xrefs", lambda clause: str(clause.xref.id)),
    "AltIdClause": ("alternative", lambda clause: str(clause.alt_id)),
    "ReplacedByClause": ("replaced_by", lambda clause: str(clause.term)),
    "IsAClause": ("facts", lambda clause: ("isa", str(clause.term))),
    "RelationshipClause": ("facts", lambda clause: (str(clause.typedef), str(clause.term))),
}


class OboSource:
    """Reader of one ontology; its terms become concepts.

    Names are the term's name and its exact synonyms. Facts are `is_a` ("isa") and `relationship`. Obsolete terms are
    dropped; replaced terms and alternative ids become retired identifiers of the concept.

    Args:
        path: an .obo file, or an OBO graph if the name ends in .json; both may be gzip-compressed.
        prefix: a term with a cross-reference to this vocabulary ("UMLS", which some ontologies write as "UMLS_CUI")
            takes its identifier, so that ontologies merge on it; the first in byte order if there are several. Other
            terms keep their own id.

    Raises:
        InputError: the file cannot be read or parsed, or has more than 1 GiB; the message names the line.
    """

    mirrored = False

    def __init__(self, path: Path, prefix: str | None = None) -> None:
        self.path = Path(path)
        self.report: Report = {self.path.name: Counter()}
        self.warnings: list[str] = []
        self._prefix = prefix
        frames = list(_parse(self.path))
        self._labels = _relation_labels(frames)
        self._terms = [term for term in (_term(frame) for frame in frames) if term]
        self._identifiers = {term["id"]: self._identifier(term) for term in self._terms}

    def concepts(self) -> Iterator[tuple[Table, pl.DataFrame]]:
        """Yield names, codes, definitions and retired identifiers."""
        counts = self.report[self.path.name]
        counts["rows"] = len(self._terms)
        rows: dict[Table, list[dict[str, Any]]] = {table: [] for table in TABLES}
        for term in self._terms:
            cui = self._identifiers[term["id"]]
            if term["obsolete"]:
                counts["dropped: obsolete"] += 1
                retired = [(term["id"], self._identifiers.get(other, other)) for other in term["replaced_by"]]
            else:
                counts["dropped: synonym that is not exact"] += term["inexact"]
                retired = [(other, cui) for other in term["alternative"]]
                self._describe(rows, term, cui)
            rows["retired"] += [{"old": old, "cui": target} for old, target in retired]
        for table, values in rows.items():
            yield table, pl.DataFrame(values, schema=TABLES[table])

    def relations(self) -> Iterator[pl.DataFrame]:
        """Yield facts; the source is the prefix of the term that states it."""
        facts = [
            (
                self._identifiers[term["id"]],
                self._labels.get(relation, relation),
                self._identifiers.get(target, target),
                source_abbreviation(term["id"].partition(":")[0]),
            )
            for term in self._terms
            if not term["obsolete"]
            for relation, target in term["facts"]
        ]
        schema = dict.fromkeys(("head", "relation", "tail", "source"), pl.String)
        yield pl.DataFrame(facts, schema=schema, orient="row")

    def inverses(self) -> Mapping[str, str]:
        """Return an empty mapping: ontologies state a fact from one end."""
        return {}

    def _identifier(self, term: dict[str, Any]) -> str:
        if self._prefix:
            wanted = source_abbreviation(self._prefix)
            pairs = (xref.partition(":") for xref in term["xrefs"])
            found = sorted(code for prefix, _, code in pairs if code and source_abbreviation(prefix) == wanted)
            if found and not term["obsolete"]:
                return found[0]
            self.report[self.path.name][f"without a cross-reference to {self._prefix}"] += not term["obsolete"]
        return term["id"]

    @staticmethod
    def _describe(rows: dict[Table, list[dict[str, Any]]], term: dict[str, Any], cui: str) -> None:
        rows["concepts"].append({"cui": cui})
        for preference, names in enumerate((term["names"], term["synonyms"])):
            rows["names"] += [{"cui": cui, "name": name, "preference": preference} for name in names]
        rows["definitions"] += [{"cui": cui, "text": text} for text in term["definitions"]]
        for preference, codes in enumerate(([term["id"]], term["xrefs"])):
            for source, code in (split_code("", code) for code in codes):
                if source:
                    rows["codes"].append({"cui": cui, "source": source, "code": code, "preference": preference})


def _parse(path: Path) -> Iterator[Any]:
    import fastobo

    is_graph = path.name.removesuffix(".gz").endswith(".json")
    try:
        with _open(path) as stream:
            bounded = BoundedReader(path, stream, LARGEST_ONTOLOGY, "in one ontology")
            yield from fastobo.load_graph(bounded) if is_graph else fastobo.load(bounded, threads=1)
    except InputError:
        raise
    except SyntaxError as error:
        raise InputError(f"{path}: line {error.lineno}: {error.msg}; the file must be OBO format 1.4") from error
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read: {' '.join(str(error).split())[:300]}") from error


def _open(path: Path) -> IO[bytes]:
    with open_regular(path) as stream:
        compressed = stream.read(2) == b"\x1f\x8b"
    raw = open_regular(path)
    return gzip.GzipFile(fileobj=raw) if compressed else raw  # type: ignore[return-value]


def _term(frame: Any) -> dict[str, Any] | None:
    """Return the supported clauses of a term frame, or None for relation types and instances."""
    import fastobo.term

    if not isinstance(frame, fastobo.term.TermFrame):
        return None
    term: dict[str, Any] = {key: [] for key, _ in _CLAUSES.values()}
    term |= {"id": str(frame.id), "obsolete": False, "synonyms": [], "inexact": 0}
    for clause in frame:
        name = type(clause).__name__
        if name in _CLAUSES:
            key, read = _CLAUSES[name]
            term[key].append(read(clause))
        elif name == "IsObsoleteClause":
            term["obsolete"] = clause.obsolete
        elif name == "SynonymClause" and clause.synonym.scope == "EXACT":
            term["synonyms"].append(clause.synonym.desc)
        elif name == "SynonymClause":
            term["inexact"] += 1
    return term


def _relation_labels(frames: list[Any]) -> dict[str, str]:
    """Return readable names of relations that have an identifier ("BFO:0000050" -> "part_of")."""
    import fastobo.typedef as clauses

    return {
        str(frame.id): clause.name.replace(" ", "_")
        for frame in frames
        if isinstance(frame, clauses.TypedefFrame)
        for clause in frame
        if isinstance(clause, clauses.NameClause) and ":" in str(frame.id)
    }
