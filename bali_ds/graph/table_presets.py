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
        node_header, edge_header: the columns of tables without a line that names them; () if they have one.
        named_by: in a node table with one property in each row, the value of the column property of rows with names.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    prefixes: Mapping[str, str] = field(default_factory=dict)
    separator: str = ""
    relations: Mapping[str, str] = field(default_factory=dict)
    mirrored: bool = False
    node_header: tuple[str, ...] = ()
    edge_header: tuple[str, ...] = ()
    named_by: str = ""


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

# links_description.txt and meta_description.txt of dsi-bdi/biokg: tables without a header, and a file of names for each
# kind of entity, which can be concatenated.
_BIOKG = TablePreset(
    columns={"property": "property"},
    node_header=("cui", "property", "preferred_name"),
    edge_header=("head_cui", "relation", "tail_cui"),
    named_by="NAME",
    relations={
        "PPI": "interacts_with", "DPI": "interacts_with", "DDI": "interacts_with", "DRUG_CARRIER": "has_carrier",
        "DRUG_ENZYME": "has_enzyme", "DRUG_TRANSPORTER": "has_transporter", "DRUG_TARGET": "has_target",
        "PROTEIN_PATHWAY_ASSOCIATION": "associated_with", "DRUG_PATHWAY_ASSOCIATION": "associated_with",
        "DISEASE_PATHWAY_ASSOCIATION": "associated_with", "DRUG_DISEASE_ASSOCIATION": "associated_with",
        "PROTEIN_DISEASE_ASSOCIATION": "associated_with", "MEMBER_OF_COMPLEX": "member_of_complex",
        "MEMBER_OF_PATHWAY": "member_of_pathway", "MEMBER_OF_TOP_LEVEL_PATHWAY": "member_of_top_level_pathway",
        "DISEASE_GENETIC_DISORDER": "has_genetic_disorder", "RELATED_GENETIC_DISORDER": "related_genetic_disorder",
    },
)  # fmt: skip

TABLE_PRESETS = {"biokg": _BIOKG, "hetionet": _HETIONET, "primekg": _PRIMEKG}
