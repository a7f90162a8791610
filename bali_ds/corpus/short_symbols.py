"""Short symbols of diseases that the text does not speak of: "ALT" where nothing else says liposarcoma."""

from collections.abc import Iterable, Set

from bali_ds.corpus.concept_resolver import SEMANTIC_TYPES
from bali_ds.corpus.gene_context import GeneContext
from bali_ds.corpus.normalization import long_words
from bali_ds.corpus.stopwords import is_written_as_symbol
from bali_ds.graph.knowledge_graph import KnowledgeGraph

_LONGEST = 3


class ShortSymbols:
    """Finds out whether a text has evidence for the diseases that a symbol of at most three characters abbreviates.

    Such a symbol has many meanings, and names of diseases have the most symbols. The evidence is a definition, or most
    words of another name of the disease. A disease whose preferred name is the symbol needs none. A concept without
    semantic types may be a disease unless its name is that of a gene or a protein.
    """

    def __init__(self, graph: KnowledgeGraph, genes: GeneContext) -> None:
        self._graph = graph
        self._genes = genes
        self._names: dict[int, list[set[str]]] = {}

    def needs_evidence(self, symbol: str, defined: Set[str]) -> bool:
        """Return whether a mention is a short symbol that the text does not define, in the singular or plural."""
        singular = symbol.removesuffix("s")
        return len(singular) <= _LONGEST and is_written_as_symbol(symbol) and defined.isdisjoint((symbol, singular))

    def supported(self, concept_ids: Iterable[int], words: Set[str]) -> tuple[int, ...]:
        """Return those of the concepts that are not diseases or that the text has evidence for.

        Args:
            concept_ids: the concepts that a symbol may refer to.
            words: the `long_words` of the text.
        """
        return tuple(each for each in concept_ids if not self._may_be_disease(each) or self._is_named(each, words))

    def _may_be_disease(self, concept_id: int) -> bool:
        types = self._graph.semantic_types(concept_id)
        return not SEMANTIC_TYPES["disease"].isdisjoint(types) if types else not self._genes.may_be_product(concept_id)

    def _is_named(self, concept_id: int, words: Set[str]) -> bool:
        if len(self._graph.preferred_name(concept_id)) <= _LONGEST:
            return True
        if concept_id not in self._names:
            longer = (name for name in self._graph.names(concept_id) if len(name) > _LONGEST)
            self._names[concept_id] = list(map(long_words, longer))
        return any(2 * len(own & words) > len(own) for own in self._names[concept_id])
