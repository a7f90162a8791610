"""Reader of MeSH descriptors in the XML of the National Library of Medicine."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from bali_ds.errors import InputError
from bali_ds.graph.source import TABLES, Report, Table
from bali_ds.xml_elements import elements, plain_text

_SCHEMA = dict.fromkeys(("head", "relation", "tail", "source"), pl.String)


class MeshSource:
    """Reader of a descriptor file (desc2026.xml, plain or gzip-compressed); concepts are "MESH:D000001".

    Names are the name and the entry terms of a descriptor. "child_of" facts lead from a descriptor to its parents in
    the tree, as from the UMLS; "has_pharmacological_action" facts lead from a substance to its actions.

    Raises:
        InputError: the file is not a descriptor file, or it is truncated; the message names the line.
    """

    mirrored = False

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.report: Report = {self.path.name: Counter()}
        self.warnings: list[str] = []
        self._facts: list[tuple[str, str, str, str]] = []

    def concepts(self) -> Iterator[tuple[Table, pl.DataFrame]]:
        """Yield names, codes and definitions; keep the facts, which are in the same elements, for `relations`."""
        rows: dict[Table, list[dict[str, Any]]] = {table: [] for table in TABLES}
        tree_numbers: dict[str, str] = {}
        counts = self.report[self.path.name]
        for record in elements(self.path, counts, "DescriptorRecord"):
            counts["rows"] += 1
            code = plain_text(record.find("DescriptorUI"))
            cui = f"MESH:{code}"
            rows["codes"].append({"cui": cui, "source": "MSH", "code": code, "preference": 0})
            for preference, terms in enumerate(("DescriptorName/String", ".//TermList/Term/String")):
                for name in record.iterfind(terms):
                    rows["names"].append({"cui": cui, "name": plain_text(name), "preference": preference})
            for note in record.iterfind(".//ScopeNote"):
                rows["definitions"].append({"cui": cui, "text": plain_text(note)})
            for number in record.iterfind("TreeNumberList/TreeNumber"):
                tree_numbers[plain_text(number)] = cui
            for action in record.iterfind(".//PharmacologicalAction/DescriptorReferredTo/DescriptorUI"):
                self._facts.append((cui, "has_pharmacological_action", f"MESH:{plain_text(action)}", "MSH"))
        if not rows["names"]:
            raise InputError(f"{self.path}: contains no DescriptorRecord; pass a MeSH descriptor file")
        for tree_number, cui in tree_numbers.items():
            parent = tree_numbers.get(tree_number.rpartition(".")[0])
            if parent:
                self._facts.append((cui, "child_of", parent, "MSH"))
        for table, values in rows.items():
            yield table, pl.DataFrame(values, schema=TABLES[table])

    def relations(self) -> Iterator[pl.DataFrame]:
        """Yield facts."""
        yield pl.DataFrame(self._facts, schema=_SCHEMA, orient="row")

    def inverses(self) -> Mapping[str, str]:
        """Return an empty mapping: the tree is read from one end."""
        return {}
