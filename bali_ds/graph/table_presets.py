"""Columns, identifiers and relation names of public graphs that are distributed as tables."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TablePreset:
    """How to read the tables of one graph.

    Attributes:
        columns: maps a column of `TableSource` to its name in the tables.
        prefixes: replaces prefixes of identifiers, as the tables spell them; an empty one is removed.
        separator: what stands between prefix and rest where the identifiers of the tables include it.
        relations: replaces names of relations.
        mirrored: whether every fact is listed from both ends.
    """

    columns: Mapping[str, str]
    prefixes: Mapping[str, str] = field(default_factory=dict)
    separator: str = ""
    relations: Mapping[str, str] = field(default_factory=dict)
    mirrored: bool = False


# hetnet/tsv/README.md of hetio/hetionet; the relations are the metaedges of its metagraph.
_HETIONET = TablePreset(
    columns={
        "cui": "id", "preferred_name": "name", "semantic_types": "kind",
        "head_cui": "source", "relation": "metaedge", "tail_cui": "target",
    },
    prefixes={"Gene": "NCBIGENE", "Compound": "DRUGBANK", "Symptom": "MESH", "Side Effect": ""},
    separator="::",
    relations={
        "AdG": "downregulates", "AeG": "expresses", "AuG": "upregulates", "CbG": "binds", "CcSE": "causes",
        "CdG": "downregulates", "CpD": "palliates", "CrC": "resembles", "CtD": "treats", "CuG": "upregulates",
        "DaG": "associated_with", "DdG": "downregulates", "DlA": "localized_in", "DpS": "presents", "DrD": "resembles",
        "DuG": "upregulates", "GcG": "covaries_with", "GiG": "interacts_with", "GpBP": "participates_in",
        "GpCC": "participates_in", "GpMF": "participates_in", "GpPW": "participates_in", "Gr>G": "regulates",
        "PCiC": "includes",
    },
)  # fmt: skip

# kg.csv of mims-harvard/PrimeKG. Its ids are those of several vocabularies, and each edge is listed in both directions.
_PRIMEKG = TablePreset(
    columns={
        "head_cui": "x_id", "head_prefix": "x_source", "head_name": "x_name", "head_types": "x_type",
        "relation": "display_relation",
        "tail_cui": "y_id", "tail_prefix": "y_source", "tail_name": "y_name", "tail_types": "y_type",
    },
    prefixes={"NCBI": "NCBIGENE"},
    mirrored=True,
)  # fmt: skip

TABLE_PRESETS = {"hetionet": _HETIONET, "primekg": _PRIMEKG}
