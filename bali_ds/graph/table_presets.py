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
        neo4j: whether nodes and edges are rows of one file that Neo4j's `apoc.export.csv.all` wrote: labels begin with
            a colon, lists are JSON, and heads and tails are the column key of nodes instead of identifiers.
        relation_pattern: a pattern whose first group, in lower case, is the relation in the names of relations.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    prefixes: Mapping[str, str] = field(default_factory=dict)
    separator: str = ""
    relations: Mapping[str, str] = field(default_factory=dict)
    mirrored: bool = False
    node_header: tuple[str, ...] = ()
    edge_header: tuple[str, ...] = ()
    named_by: str = ""
    neo4j: bool = False
    relation_pattern: str = ""


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

# The CSV export of SPOKE's Neo4j database (neo4j.com/docs/apoc/current/export/csv), which the package in
# IlyaLab/digital_twin_graph_utils reads too. Relations end in the initials of both ends ("TREATS_CtD"). Identifiers of
# genes, proteins and symptoms may lack the prefix of their vocabulary; those of side effects are CUIs.
_SPOKE = TablePreset(
    columns={
        "cui": "identifier", "preferred_name": "name", "semantic_types": "_labels", "prefix": "_labels", "key": "_id",
        "head_cui": "_start", "relation": "_type", "tail_cui": "_end",
    },
    prefixes={"Gene": "NCBIGENE", "Protein": "UNIPROT", "Symptom": "MESH", "SideEffect": ""},
    relations={
        "associates": "associated_with", "covaries": "covaries_with", "interacts": "interacts_with", "isin": "is_in",
        "localizes": "localized_in", "participates": "participates_in", "partof": "part_of",
        "translatedfrom": "translated_from",
    },
    neo4j=True,
    relation_pattern="^(.+)_[A-Z][A-Za-z]*$",
)  # fmt: skip

TABLE_PRESETS = {"biokg": _BIOKG, "hetionet": _HETIONET, "primekg": _PRIMEKG, "spoke": _SPOKE}
