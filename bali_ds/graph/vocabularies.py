"""Names of vocabularies, and of their codes, as the UMLS writes them."""

# Prefixes that ontologies and entity linkers use, in lower case, and the UMLS source abbreviation (SAB).
_ABBREVIATIONS = {
    "mesh": "MSH",
    "msh": "MSH",
    "ncit": "NCI",
    "hp": "HPO",
    "ordo": "ORPHANET",
    "orpha": "ORPHANET",
    "orphanet": "ORPHANET",
    "mim": "OMIM",
    "mimps": "OMIM",
    "omimps": "OMIM",
    "sctid": "SNOMEDCT_US",
    "snomedct": "SNOMEDCT_US",
    "snomedct_us": "SNOMEDCT_US",
    "icd10": "ICD10",
    "icd10cm": "ICD10CM",
    "icd9": "ICD9CM",
    "icd9cm": "ICD9CM",
    "ncbigene": "NCBIGENE",
    "entrezgene": "NCBIGENE",
    "entrez": "NCBIGENE",
    "geneid": "NCBIGENE",
    "ncbitaxon": "NCBI",
    "taxonomy": "NCBI",
    "meddra": "MDR",
    "lnc": "LNC",
    "loinc": "LNC",
}

# Relation names of tables that stand for a bare UMLS REL, by source.
_RELATIONS = {("MSH", "mesh_narrower_than"): "CHD"}


def source_abbreviation(name: str) -> str:
    """Return the UMLS abbreviation of a vocabulary ("MESH" -> "MSH"); an unknown name in capitals."""
    return _ABBREVIATIONS.get(name.lower(), name.upper())


def relation_label(source: str, relation: str) -> str:
    """Return the UMLS label of a table's relation; an unknown one as it is."""
    return _RELATIONS.get((source, relation), relation)


def split_code(source: str, code: str) -> tuple[str, str]:
    """Return (source abbreviation, bare code): ("HPO", "HP:0000118") and ("", "hp:0000118") -> ("HPO", "0000118").

    Codes are compared without the prefix that some vocabularies make part of them.
    """
    source = source_abbreviation(source) if source else ""
    prefix, separator, rest = code.partition(":")
    if separator and source in ("", source_abbreviation(prefix)):
        return source_abbreviation(prefix), rest
    return source, code
