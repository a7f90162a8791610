"""Dictionary linker: finds the longest names of the graph in texts, on word boundaries."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bali_ds.corpus.abbreviations import Abbreviation, find_abbreviations
from bali_ds.corpus.disambiguation import Candidates, Disambiguator
from bali_ds.corpus.document import Document, Mention
from bali_ds.corpus.gene_context import GeneContext
from bali_ds.corpus.name_index import NameIndex, symbol_spelling
from bali_ds.corpus.normalization import WordHasher, long_words, split_words
from bali_ds.corpus.short_symbols import ShortSymbols
from bali_ds.corpus.word_cache import WordCache
from bali_ds.graph.knowledge_graph import KnowledgeGraph


class _Hit(NamedTuple):
    """A span of a text, in code points, and the concepts that it may refer to."""

    start: int
    end: int
    candidates: Candidates


class _BatchMatches(NamedTuple):
    """The longest name that begins at each word of a batch of documents, in text order; lists of equal length.

    Attributes:
        documents: bounds of the matches of each document, one more than there are documents.
        starts, ends: code points, end exclusive.
        rows: rows of the name index.
        concept_ids: the best concept of each name.
        unique: whether that is the name's only concept and the name is valid in every spelling.
    """

    documents: list[int]
    starts: list[int]
    ends: list[int]
    rows: list[int]
    concept_ids: list[int]
    unique: list[bool]


class DictionaryLinker:
    """Finds mentions of the concepts of a graph by their names.

    A `Disambiguator` chooses among concepts that share a name. An abbreviation that a text defines refers to the
    concept of its long form. If the long form is not a name of the graph, the abbreviation refers to those of its own
    concepts that have a word in common with the long form.
    """

    def __init__(self, name_index: NameIndex, graph: KnowledgeGraph) -> None:
        self._name_index = name_index
        self._graph = graph
        self._hasher = WordHasher()
        self._word_cache = WordCache(self._hash_words)
        self._disambiguator = Disambiguator(name_index, graph)
        self._genes = GeneContext(graph)
        self._short_symbols = ShortSymbols(graph, self._genes)
        self._labels: dict[int, tuple[str, tuple[str, ...]]] = {}

    def link(self, documents: Sequence[Document]) -> list[Document]:
        """Return the documents with the mentions found in them, in the order of the text.

        The type of a mention is the first semantic type of its concept.
        """
        matches = self._matches([document.text for document in documents])
        linked = []
        for number, document in enumerate(documents):
            own = range(matches.documents[number], matches.documents[number + 1])
            hits = self._in_context(document.text, list(self._hits(document.text, matches, own)))
            concept_ids = self._disambiguator.choose([hit.candidates for hit in hits])
            mentions = [
                Mention(start, end, document.text[start:end], *self._label(concept_id))
                for (start, end, _), concept_id in zip(hits, concept_ids, strict=True)
            ]
            linked.append(replace(document, mentions=tuple(mentions)))
        return linked

    def _matches(self, texts: Sequence[str]) -> _BatchMatches:
        index, words = self._name_index, self._word_cache(texts)
        hashes = np.insert(words.values.view(np.uint64), words.bounds[1:], 0)  # no name spans two documents
        found = index.longest_matches(hashes)
        separators = words.bounds[1:] + np.arange(len(texts))
        documents = np.searchsorted(separators, found.words)
        firsts = found.words - documents
        heads = index.offsets[found.rows]
        unique = (index.offsets[found.rows + 1] - heads == 1) & (index.spellings[heads] == 0)
        columns = (
            np.searchsorted(documents, np.arange(len(texts) + 1)),
            words.starts[firsts],
            words.ends[firsts + found.lengths - 1],
            found.rows,
            index.concept_ids[heads],
            unique,
        )
        return _BatchMatches(*(column.tolist() for column in columns))

    def _hits(self, text: str, matches: _BatchMatches, own: range) -> Iterator[_Hit]:
        """Yield matches from left to right, each after the end of the one before."""
        last_end = 0
        for number in own:
            start = matches.starts[number]
            if start < last_end:
                continue
            end = matches.ends[number]
            if matches.unique[number]:
                candidates: Candidates = (matches.concept_ids[number],)
            else:
                candidates = self._disambiguator.candidates(matches.rows[number], symbol_spelling(text, start, end))
            if candidates:
                yield _Hit(start, end, candidates)
                last_end = end

    def _in_context(self, text: str, hits: list[_Hit]) -> list[_Hit]:
        """Return the hits with the concepts that the text leaves possible, and without hits that lose all of them."""
        definitions = list(find_abbreviations(text)) if "(" in text else []
        named = {(hit.start, hit.end): hit.candidates for hit in hits}
        hits = _define_abbreviations(text, hits, definitions, self._graph.names)
        hits = self._with_genes(text, hits, definitions, named)
        return self._with_evidence(text, hits, {short for short, *_ in definitions})

    def _with_genes(
        self,
        text: str,
        hits: list[_Hit],
        definitions: Sequence[Abbreviation],
        named: Mapping[tuple[int, int], Candidates],
    ) -> list[_Hit]:
        """Return the hits with genes and their products where symbols name genes.

        Args:
            text: the text.
            hits: the hits in the text, in its order.
            definitions: the abbreviations that the text defines.
            named: the concepts with the name of each span, whatever the text defines.
        """
        others = [(start, end) for start, end, concept_ids in hits if self._genes.products(concept_ids) != concept_ids]
        genes = self._genes.gene_symbols(text, others, definitions)
        if not genes:
            return hits
        kept = []
        for hit in hits:
            span = hit.start, hit.end
            if span not in genes:
                kept.append(hit)
            elif candidates := self._genes.products(hit.candidates) or self._genes.products(named.get(span, ())):
                kept.append(hit._replace(candidates=candidates))
        return kept

    def _with_evidence(self, text: str, hits: list[_Hit], defined: set[str]) -> list[_Hit]:
        """Return the hits without diseases that only a short symbol speaks of."""
        symbols = self._short_symbols
        short = {hit.start for hit in hits if symbols.needs_evidence(text[hit.start : hit.end], defined)}
        if not short:
            return hits
        words = long_words(text)
        kept = []
        for hit in hits:
            candidates = symbols.supported(hit.candidates, words) if hit.start in short else hit.candidates
            if candidates:
                kept.append(hit._replace(candidates=candidates))
        return kept

    def _hash_words(self, text: str) -> NDArray[np.int64]:
        words = split_words(text)
        hashes = np.array(self._hasher(words.texts), np.uint64).view(np.int64)
        starts = np.array(words.starts, np.int64)
        return np.column_stack([hashes, starts, starts + np.array([len(word) for word in words.texts], np.int64)])

    def _label(self, concept_id: int) -> tuple[str, tuple[str, ...]]:
        """Return the type and the identifiers of a mention of this concept."""
        if concept_id not in self._labels:
            first_type = next(iter(self._disambiguator.types(concept_id)), "")
            self._labels[concept_id] = first_type, (self._graph.cui(concept_id),)
        return self._labels[concept_id]


def _define_abbreviations(
    text: str, hits: list[_Hit], definitions: Sequence[Abbreviation], names: Callable[[int], list[str]]
) -> list[_Hit]:
    """Return the hits with each occurrence of an abbreviation linked to the concept of its long form in the text.

    An abbreviation whose long form is not a name of the graph keeps the candidates that have a word in common with it.

    Args:
        text: the text.
        hits: the hits in the text, in its order.
        definitions: the abbreviations that the text defines.
        names: returns the names of a concept id.
    """
    if not definitions:
        return hits
    long_forms = {(hit.start, hit.end): hit.candidates for hit in hits}
    meanings: dict[str, tuple[Candidates, set[str]]] = {}
    for short, start, end in definitions:
        meanings.setdefault(short, (long_forms.get((start, end), ()), long_words(text[start:end])))
    shorts = "|".join(re.escape(short) for short in sorted(meanings, key=len, reverse=True))
    starts, ends = [hit.start for hit in hits], [hit.end for hit in hits]
    defined: list[_Hit] = []
    replaced: set[int] = set()
    for match in re.finditer(rf"(?<!\w)(?:{shorts})(?!\w)", text):
        start, end = match.span()
        overlapping = [hits[number] for number in range(bisect_right(ends, start), bisect_left(starts, end))]
        if any(_contains(hit, start, end) for hit in overlapping):
            continue
        candidates, words = meanings[match[0]]
        if not candidates:
            own = (each for hit in overlapping if (hit.start, hit.end) == (start, end) for each in hit.candidates)
            candidates = tuple(each for each in own if any(words & long_words(name) for name in names(each)))
        replaced.update(hit.start for hit in overlapping)
        if candidates:
            defined.append(_Hit(start, end, candidates))
    return sorted([hit for hit in hits if hit.start not in replaced] + defined)


def _contains(hit: _Hit, start: int, end: int) -> bool:
    return hit.start <= start and end <= hit.end and hit.end - hit.start > end - start
