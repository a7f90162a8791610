"""Symbols that a text uses as names of genes: "the MEN1 gene" is not about the disease of that name."""

import re
from collections.abc import Iterable

from bali_ds.corpus.abbreviations import Abbreviation
from bali_ds.corpus.concept_resolver import SEMANTIC_TYPES
from bali_ds.corpus.stopwords import is_written_as_symbol
from bali_ds.graph.knowledge_graph import KnowledgeGraph

_PARTS = (
    r"genes?|locus|loci|mutations?|mutants?|deletions?|alterations?|exons?|introns?|codons?|alleles?|promoters?|"
    r"polymorphisms?|genotypes?|haplotypes?|variants?|transcripts?|cDNAs?|mRNAs?|proteins?|expression|encod(?:es|ed|ing)"
)
_BETWEEN = r"(?:(?:tumou?r|suppressor|repair|germline|somatic|missense|nonsense|gene|[a-z]?\w*\d\w*)[\s-]+){0,3}"
_AFTER = re.compile(rf"\)?[\s-]+{_BETWEEN}(?:{_PARTS})\b", re.IGNORECASE)
_CHANGES = (
    r"mutations?|deletions?|alterations?|alleles?|polymorphisms?|variants?|mutation(?:al)? (?:analysis|screening)"
)
_OF = rf"{_CHANGES}|exons?[ \d-]*|codons?[ \d-]*|transcripts?|expression|sequencing"
_BEFORE = re.compile(
    rf"\b(?:(?:{_OF})\s+of\s+(?:the\s+|human\s+)?|(?:{_CHANGES})\s+in\s+(?:the\s+)?|sequencing\s+|genes?[\s(]+)\Z",
    re.IGNORECASE,
)
_NAMED_AFTER = re.compile(
    r"\)?(?:[\s-]+(?:tumou?r[\s-]suppressor|(?:dna[\s-])?repair[\s-]genes?)|,\s+(?:the|an?)\s+genes?)\b", re.IGNORECASE
)
_NAMED_BEFORE = re.compile(r"\bgenes?[\s(]+\Z", re.IGNORECASE)
_REACH = 60
"""Characters before and after a mention that are looked at."""
_LONGEST_ABBREVIATION = 3
"""Letters of a symbol that "DMD mutations" and "the PKU gene" rather use for a disease."""
_PRODUCTS = SEMANTIC_TYPES["gene"] | {"T116", "T123", "T125", "T126", "T129", "T192"}
"""Genes, proteins, enzymes, receptors, hormones and other biologically active substances."""
_NOT_ENZYMES = "disease|case|phase|phrase|base|database|release|(?:in|de)crease|purchase|bias|[a-z]*stases\\b"
_PRODUCT_NAME = re.compile(
    r"(?:.*[\W_])?(?:genes?|proteins?|receptors?|factors?|enzymes?|(?:subunit|isoform)s?|"
    rf"(?!{_NOT_ENZYMES})[a-z]{{2,}}ases?)(?:\s+\S{{1,5}}){{0,2}}|(?:genes|proteins|receptors|factors), .*",
    re.IGNORECASE,
)
"""A name whose last word, but for a number or symbol, says what it is: not "lactase deficiency". MeSH inverts names."""


class GeneContext:
    """Finds out where a text speaks of genes, and which concepts may be genes or what genes code for.

    A concept without semantic types may be one if its preferred name says so.
    """

    def __init__(self, graph: KnowledgeGraph) -> None:
        self._graph = graph
        self._products: dict[int, bool] = {}

    def gene_symbols(
        self, text: str, spans: Iterable[tuple[int, int]], definitions: Iterable[Abbreviation]
    ) -> set[tuple[int, int]]:
        """Return those of the spans whose symbol is the name of a gene there.

        Words beside a symbol, such as "gene" or "mutation", say so. Three letters without a digit ("DMD mutations")
        mean a disease with them too, unless the words name a gene ("the gene WAS", "the PML tumor suppressor"). What
        holds at one place holds in the whole text, unless the text defines the symbol elsewhere as something else.

        Args:
            text: the text.
            spans: first and one past the last code point of mentions.
            definitions: the abbreviations that the text defines.
        """
        symbols = {span: text[slice(*span)] for span in spans}
        symbols = {span: symbol for span, symbol in symbols.items() if is_written_as_symbol(symbol)}
        names = {symbol for (start, end), symbol in symbols.items() if _names_a_gene(text, start, end)}
        if not names:
            return set()
        defined: set[str] = set()
        for short, _, end in definitions:
            start = text.index(short, end)
            if not _names_a_gene(text, start, start + len(short)):
                defined.add(short)
        return {
            span
            for span, symbol in symbols.items()
            if symbol in names and (symbol not in defined or _is_beside_gene_words(text, *span))
        }

    def products(self, concept_ids: tuple[int, ...]) -> tuple[int, ...]:
        """Return those of the concepts that may be genes or what genes code for."""
        return tuple(filter(self.may_be_product, concept_ids))

    def may_be_product(self, concept_id: int) -> bool:
        """Return whether a concept may be a gene or what a gene codes for."""
        if concept_id not in self._products:
            types = self._graph.semantic_types(concept_id)
            known = not _PRODUCTS.isdisjoint(types)
            named = not types and _PRODUCT_NAME.fullmatch(self._graph.preferred_name(concept_id))
            self._products[concept_id] = known or bool(named)
        return self._products[concept_id]


def _names_a_gene(text: str, start: int, end: int) -> bool:
    if end - start <= _LONGEST_ABBREVIATION and text[start:end].isalpha():
        return _matches(_NAMED_BEFORE, _NAMED_AFTER, text, start, end)
    return _is_beside_gene_words(text, start, end)


def _is_beside_gene_words(text: str, start: int, end: int) -> bool:
    return _matches(_BEFORE, _AFTER, text, start, end)


def _matches(before: re.Pattern[str], after: re.Pattern[str], text: str, start: int, end: int) -> bool:
    follows = after.match(text, end, min(len(text), end + _REACH))
    return bool(follows or before.search(text, max(0, start - _REACH), start))
