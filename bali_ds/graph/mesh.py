"""Reader of MeSH descriptors in the XML of the National Library of Medicine."""

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
    """Reader of a descriptor file (desc2026.xml, plain or gzip-compressed); concepts are "MESH:D000001".

    Names are the name and the entry terms of a descriptor. "CHD" facts lead from a descriptor to its parents in the
    tree, as in the UMLS; "has_pharmacological_action" facts lead from a substance to its actions.

    Raises:
        InputError: the file is not a descriptor file, or it is truncated; the message names the line.
    """

    mirrored = False

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.report: Report = {self.path.name: Counter()}
        self._facts: list[tuple[str, str, str, str]] = []

    def concepts(self) -> Iterator[tuple[Table, pl.DataFrame]]:
        """Yield names, codes and definitions; keep the facts, which are in the same elements, for `relations`."""
        rows: dict[Table, list[dict[str, Any]]] = {table: [] for table in TABLES}
        tree_numbers: dict[str, str] = {}
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
                tree_numbers[number.text or ""] = cui
            for action in record.iterfind(".//PharmacologicalAction/DescriptorReferredTo/DescriptorUI"):
                self._facts.append((cui, "has_pharmacological_action", f"MESH:{action.text}", "MSH"))
        if not rows["names"]:
            raise InputError(f"{self.path}: contains no DescriptorRecord; pass a MeSH descriptor file")
        for tree_number, cui in tree_numbers.items():
            parent = tree_numbers.get(tree_number.rpartition(".")[0])
            if parent:
                self._facts.append((cui, "CHD", parent, "MSH"))
        for table, values in rows.items():
            yield table, pl.DataFrame(values, schema=TABLES[table])

    def relations(self) -> Iterator[pl.DataFrame]:
        """Yield facts."""
        yield pl.DataFrame(self._facts, schema=_SCHEMA, orient="row")

    def inverses(self) -> Mapping[str, str]:
        """Return an empty mapping: the tree is read from one end."""
        return {}


def _records(path: Path) -> Iterator[Any]:
    """Yield each DescriptorRecord; entities, document types and the network are not used."""
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
        raise InputError(f"{path}: line {error.lineno}: {error.msg}; download the file again") from error
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
