"""Symbols that a text uses as names of genes: "the MEN1 gene" is not about the disease of that name."""

import re

from bali_ds.corpus.concept_resolver import SEMANTIC_TYPES
from bali_ds.corpus.normalization import split_words
from bali_ds.corpus.stopwords import is_symbol
from bali_ds.graph.knowledge_graph import KnowledgeGraph

_PARTS = (
    r"genes?|locus|loci|mutations?|mutants?|deletions?|alterations?|exons?|introns?|codons?|alleles?|promoters?|"
    r"polymorphisms?|genotypes?|haplotypes?|variants?|transcripts?|cDNAs?|mRNAs?|proteins?|expression"
)
_BETWEEN = r"(?:(?:tumou?r|suppressor|repair|germline|somatic|missense|nonsense|gene|[a-z]?\w*\d\w*)[\s-]+){0,3}"
_AFTER = re.compile(rf"\)?[\s-]+{_BETWEEN}(?:{_PARTS})\b", re.IGNORECASE)
_OF = (
    r"mutations?|deletions?|alterations?|mutation(?:al)? (?:analysis|screening)|sequencing|exons?[ \d-]*|"
    r"codons?[ \d-]*|alleles?|transcripts?|expression|polymorphisms?|variants?"
)
_BEFORE = re.compile(rf"\b(?:(?:{_OF})\s+of\s+(?:the\s+|human\s+)?|genes?[\s(]+)\Z", re.IGNORECASE)
_REACH = 60
"""Characters before and after a mention that are looked at."""
_PRODUCTS = SEMANTIC_TYPES["gene"] | {"T116", "T123", "T125", "T126", "T129", "T192"}
"""Genes, proteins, enzymes, receptors, hormones and other biologically active substances."""
_NO_ENZYME = "disease|case|phase|phrase|base|database|release|(?:in|de)crease|purchase|bias|[a-z]*stases\\b"
_PRODUCT_NAME = re.compile(
    rf"\b(?:genes?|proteins?|receptors?|factors?|enzymes?|(?!{_NO_ENZYME})[a-z]{{2,}}ases?)\b",
    re.IGNORECASE,
)


class GeneContext:
    """Finds out where a text speaks of genes, and which concepts may be genes or what genes code for.

    A concept without semantic types may be one if one of its names says so.
    """

    def __init__(self, graph: KnowledgeGraph) -> None:
        self._graph = graph
        self._products: dict[int, bool] = {}

    def candidates(self, text: str, start: int, end: int, candidates: tuple[int, ...]) -> tuple[int, ...]:
        """Return the candidates of a mention; for a symbol in the context of a gene, only those that may be genes.

        Args:
            text: the text.
            start: first code point of the mention.
            end: one past its last code point.
            candidates: concept ids.
        """
        products = tuple(each for each in candidates if self.may_be_product(each))
        if len(products) == len(candidates) or not is_symbol(split_words(text[start:end]).texts):
            return candidates
        after = _AFTER.match(text, end, min(len(text), end + _REACH))
        found = after or _BEFORE.search(text, max(0, start - _REACH), start)
        return products if found else candidates

    def may_be_product(self, concept_id: int) -> bool:
        """Return whether a concept may be a gene or what a gene codes for."""
        if concept_id not in self._products:
            types = self._graph.semantic_types(concept_id)
            known = not _PRODUCTS.isdisjoint(types)
            named = not types and any(_PRODUCT_NAME.search(name) for name in self._graph.names(concept_id))
            self._products[concept_id] = known or named
        return self._products[concept_id]
