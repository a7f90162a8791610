"""MeSH descriptors in the XML of the National Library of Medicine."""

import gzip
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from bali_ds.errors import InputError
from bali_ds.graph.source import TABLES, Report, Table

_SCHEMA = dict.fromkeys(("head", "relation", "tail", "source"), pl.String)


class MeshSource:
    """A descriptor file (desc2026.xml, plain or gzip-compressed); concepts are "MESH:D000001".

    Names are the descriptor's and its entry terms. A fact "CHD" leads from a descriptor to that one level up in the
    tree, as the UMLS writes the tree; "has_pharmacological_action" to the actions of a substance.

    Raises:
        InputError: the file is no descriptor file, or it is cut off; the message names the line.
    """

    mirrored = False

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.report: Report = {self.path.name: Counter()}
        self._facts: list[tuple[str, str, str, str]] = []

    def concepts(self) -> Iterator[tuple[Table, pl.DataFrame]]:
        """Yield names, codes and definitions; remember the facts, which the same elements hold."""
        rows: dict[Table, list[dict[str, Any]]] = {table: [] for table in TABLES}
        places: dict[str, str] = {}
        for record in _records(self.path):
            self.report[self.path.name]["rows"] += 1
            code = record.findtext("DescriptorUI", "")
            cui = f"MESH:{code}"
            rows["codes"].append({"cui": cui, "source": "MSH", "code": code, "preference": 0})
            for preference, terms in enumerate(("DescriptorName/String", ".//TermList/Term/String")):
                for name in record.iterfind(terms):
                    rows["names"].append({"cui": cui, "name": name.text or "", "preference": preference})
            for note in record.iterfind(".//ScopeNote"):
                rows["definitions"].append({"cui": cui, "text": " ".join((note.text or "").split())})
            for number in record.iterfind("TreeNumberList/TreeNumber"):
                places[number.text or ""] = cui
            for action in record.iterfind(".//PharmacologicalAction/DescriptorReferredTo/DescriptorUI"):
                self._facts.append((cui, "has_pharmacological_action", f"MESH:{action.text}", "MSH"))
        if not rows["names"]:
            raise InputError(f"{self.path}: holds no DescriptorRecord; name a MeSH descriptor file")
        for place, cui in places.items():
            parent = places.get(place.rpartition(".")[0])
            if parent:
                self._facts.append((cui, "CHD", parent, "MSH"))
        for table, values in rows.items():
            yield table, pl.DataFrame(values, schema=TABLES[table])

    def relations(self) -> Iterator[pl.DataFrame]:
        """Yield facts."""
        yield pl.DataFrame(self._facts, schema=_SCHEMA, orient="row")

    def inverses(self) -> Mapping[str, str]:
        """Return nothing: the tree is read from one end."""
        return {}


def _records(path: Path) -> Iterator[Any]:
    """Yield each DescriptorRecord; entities, document types and the network are left alone."""
    from lxml import etree

    try:
        with open(path, "rb") as plain:
            compressed = plain.read(2) == b"\x1f\x8b"
        with gzip.open(path) if compressed else open(path, "rb") as stream:
            for _, record in etree.iterparse(
                stream, tag="DescriptorRecord", resolve_entities=False, no_network=True, load_dtd=False
            ):
                yield record
                record.clear()
                while record.getprevious() is not None:
                    del record.getparent()[0]
    except etree.XMLSyntaxError as error:
        raise InputError(f"{path}: line {error.lineno}: {error.msg}; fetch the file again") from error
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
