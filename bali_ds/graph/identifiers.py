"""Concept identifiers as fixed-width bytes for vectorized lookup, and the names of vocabularies and their codes."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bali_ds.errors import InputError
from bali_ds.graph.columns import search

if TYPE_CHECKING:
    import polars as pl

LONGEST = 255


def fixed_width(strings: "pl.Series") -> NDArray[Any]:
    """Return strings as an array of UTF-8 bytes, dtype S{longest}, that sorts in byte order.

    Raises:
        InputError: an identifier is longer than 255 bytes or contains a NUL character.
    """
    import pyarrow as pa  # imported here because opening a graph does not need it

    array = strings.to_arrow().cast(pa.large_string())
    offsets = np.frombuffer(array.buffers()[1], np.int64, len(array) + 1, array.offset * 8)
    lengths = np.diff(offsets)
    width = max(int(lengths.max(initial=0)), 1)
    if width > LONGEST:
        raise InputError(f"identifier {strings[int(lengths.argmax())][:60]}...: is longer than {LONGEST} bytes")
    text = np.frombuffer(array.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
    if not text.all():
        raise InputError("an identifier contains a NUL character; remove it")
    if (lengths == width).all():
        return text.view(f"S{width}")
    padded = np.zeros((len(array), width), np.uint8)
    padded[np.arange(width) < lengths[:, None]] = text
    return padded.view(f"S{width}").ravel()


class IdentifierIndex:
    """Lookup table from identifiers to their positions in a sorted array.

    Attributes:
        ordered: S{width} [C], in byte order.
    """

    def __init__(self, ordered: NDArray[Any]) -> None:
        self.ordered = ordered
        self._keys = _integers(ordered) if ordered.dtype.itemsize <= 8 else ordered

    def find(self, strings: "pl.Series") -> NDArray[np.int32]:
        """Return the position of each string, int32, -1 where it is missing."""
        wanted = fixed_width(strings)
        if self._keys is self.ordered:
            return search(self.ordered, wanted)
        found = search(self._keys, _integers(wanted.astype("S8", copy=False)))
        if wanted.dtype.itemsize > 8:
            found[np.char.str_len(wanted) > 8] = -1
        return found


def _integers(identifiers: NDArray[Any]) -> NDArray[np.uint64]:
    """Return up to eight bytes as integers of the same order, which compare much faster."""
    return identifiers.astype("S8", copy=False).view(">u8").astype(np.uint64)


# Prefixes that ontologies and entity linkers use, in lower case, and the UMLS source abbreviation (SAB), which no
# library of prefixes knows.
_ABBREVIATIONS = {
    "umls": "UMLS",
    "umls_cui": "UMLS",
    "umlscui": "UMLS",
    "cui": "UMLS",
    "nci": "NCI",
    "ncithesaurus": "NCI",
    "hpo": "HPO",
    "snomed": "SNOMEDCT_US",
    "snomed_ct": "SNOMEDCT_US",
    "ncbi gene": "NCBIGENE",
    "ncbi_taxonomy": "NCBI",
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

_RELEASE = re.compile(r"_\d{4}(?:_\d{1,2}){2}\Z")

# Relation names of tables that correspond to a UMLS REL without RELA, by source.
_RELATIONS = {("MSH", "mesh_narrower_than"): "child_of"}


def source_abbreviation(name: str) -> str:
    """Return the UMLS abbreviation of a vocabulary ("MESH" -> "MSH"), or an unknown name in upper case.

    A release date at the end ("SNOMEDCT_US_2023_03_01") is not part of the name.
    """
    name = _RELEASE.sub("", name)
    return _ABBREVIATIONS.get(name.lower(), name.upper())


def join_vocabularies(names: Iterable[str]) -> str:
    """Return the source of a fact that several vocabularies state: their names, sorted, joined by bars."""
    return "|".join(sorted({each for name in names for each in split_vocabularies(name)}))


def split_vocabularies(source: str) -> list[str]:
    """Return the names of the vocabularies that state a fact of this source."""
    return source.split("|")


def relation_label(source: str, relation: str) -> str:
    """Return the UMLS label of a table's relation, or an unknown label unchanged."""
    return _RELATIONS.get((source, relation), relation)


def split_code(source: str, code: str) -> tuple[str, str]:
    """Return (source abbreviation, bare code): ("HPO", "HP:0000118") and ("", "hp:0000118") -> ("HPO", "0000118").

    Codes are compared without the prefix that some vocabularies include in them.
    """
    source = source_abbreviation(source) if source else ""
    prefix, separator, rest = code.partition(":")
    if separator and source in ("", source_abbreviation(prefix)):
        return source_abbreviation(prefix), rest
    return source, code
