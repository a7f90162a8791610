"""The dictionary linker: names of the graph found in text, the longest first, on word boundaries."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bali_ds.corpus.abbreviations import find_abbreviations
from bali_ds.corpus.dictionary import Dictionary
from bali_ds.corpus.document import Document, Mention
from bali_ds.corpus.folding import WordHasher, Words, split_words
from bali_ds.graph.store import KnowledgeGraph


class _Hit(NamedTuple):
    start: int
    end: int
    candidates: tuple[int, ...]


class DictionaryLinker:
    """Finds the concepts of a graph in texts.

    Of a name's concepts that one is meant which the document mentions most often beyond doubt, else the one whose
    preferred name it is, else the one with most facts. Abbreviations that a text defines mean what their long form
    means; where that is no name of the graph, the abbreviation is not linked.
    """

    def __init__(self, dictionary: Dictionary, graph: KnowledgeGraph) -> None:
        self._dictionary = dictionary
        self._graph = graph
        self._hasher = WordHasher()
        self._cuis: dict[int, str] = {}

    def link(self, documents: Sequence[Document]) -> list[Document]:
        """Return the documents with the mentions found in them, in the order of the text."""
        words = [split_words(document.text) for document in documents]
        hashes: list[int] = []
        begins = []
        for own in words:
            begins.append(len(hashes))
            hashes += self._hasher(own.texts)
            hashes.append(0)
        matches = self._dictionary.longest_matches(np.array(hashes, np.uint64))
        bounds = np.searchsorted(matches.words, [*begins, len(hashes)])
        linked = []
        for number, document in enumerate(documents):
            rows = slice(bounds[number], bounds[number + 1])
            hits = self._hits(
                document.text,
                words[number],
                matches.words[rows] - begins[number],
                matches.lengths[rows],
                matches.entries[rows],
            )
            linked.append(replace(document, mentions=self._mentions(document.text, hits)))
        return linked

    def _hits(
        self,
        text: str,
        words: Words,
        firsts: NDArray[np.int64],
        lengths: NDArray[np.int64],
        entries: NDArray[np.int64],
    ) -> list[_Hit]:
        """Take the longest match at the leftmost word, go on behind it; acronyms count in capitals alone."""
        table = self._dictionary
        heads = table.offsets[entries]
        many = (table.offsets[entries + 1] - heads > 1).tolist()
        best, capitals = table.concepts[heads].tolist(), table.acronyms[heads].tolist()
        behind = 0
        hits = []
        for number, (first, length) in enumerate(zip(firsts.tolist(), lengths.tolist(), strict=True)):
            if first < behind:
                continue
            last = first + length - 1
            start, end = words.starts[first], words.starts[last] + len(words.texts[last])
            if many[number]:
                candidates = self._candidates(int(entries[number]), text[start:end])
            else:
                known = not capitals[number] or _in_capitals(text[start:end])
                candidates = (best[number],) if known else ()
            if candidates:
                hits.append(_Hit(start, end, candidates))
                behind = last + 1
        return hits

    def _candidates(self, entry: int, surface: str) -> tuple[int, ...]:
        """Return the concepts of a name, without those that have it in capitals alone where the text has not."""
        table = self._dictionary
        own = slice(int(table.offsets[entry]), int(table.offsets[entry + 1]))
        concepts, acronyms = table.concepts[own].tolist(), table.acronyms[own].tolist()
        if any(acronyms) and not _in_capitals(surface):
            return tuple(concept for concept, acronym in zip(concepts, acronyms, strict=True) if not acronym)
        return tuple(concepts)

    def _mentions(self, text: str, hits: list[_Hit]) -> tuple[Mention, ...]:
        hits = _define_abbreviations(text, hits)
        certain = Counter(hit.candidates[0] for hit in hits if len(hit.candidates) == 1)
        mentions = []
        for start, end, candidates in hits:
            concept = candidates[0] if len(candidates) == 1 else max(candidates, key=certain.__getitem__)
            mentions.append(Mention(start, end, text[start:end], "", (self._cui(concept),)))
        return tuple(mentions)

    def _cui(self, concept: int) -> str:
        if concept not in self._cuis:
            self._cuis[concept] = self._graph.cui(concept)
        return self._cuis[concept]


def _in_capitals(surface: str) -> bool:
    return sum(letter.isupper() for letter in surface) >= 2


def _define_abbreviations(text: str, hits: list[_Hit]) -> list[_Hit]:
    """Give every occurrence of an abbreviation the concept of the long form that the text gives for it."""
    meanings: dict[str, tuple[int, ...]] = {}
    for short, start, end in find_abbreviations(text) if "(" in text else ():
        long_forms = [hit for hit in hits if hit.end == end and hit.start >= start]
        meanings.setdefault(short, long_forms[0].candidates if long_forms and long_forms[0].start == start else ())
    if not meanings:
        return hits
    shorts = "|".join(re.escape(short) for short in sorted(meanings, key=len, reverse=True))
    defined = [
        _Hit(match.start(), match.end(), meanings[match[0]])
        for match in re.finditer(rf"(?<!\w)(?:{shorts})(?!\w)", text)
    ]
    defined = [hit for hit in defined if not any(_contains(other, hit) for other in hits)]
    others = [hit for hit in hits if not any(hit.start < new.end and new.start < hit.end for new in defined)]
    return sorted(others + [hit for hit in defined if hit.candidates])


def _contains(outer: _Hit, inner: _Hit) -> bool:
    return outer.start <= inner.start and inner.end <= outer.end and outer.end - outer.start > inner.end - inner.start
