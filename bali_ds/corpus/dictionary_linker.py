"""The dictionary linker: names of the graph found in text, the longest first, on word boundaries."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bali_ds.corpus.abbreviations import find_abbreviations
from bali_ds.corpus.disambiguation import Candidates, Senses
from bali_ds.corpus.document import Document, Mention
from bali_ds.corpus.name_index import NameIndex
from bali_ds.corpus.normalization import WordHasher, split_words
from bali_ds.corpus.word_cache import PieceTable
from bali_ds.graph.knowledge_graph import KnowledgeGraph


class _Hit(NamedTuple):
    start: int
    end: int
    candidates: Candidates


class _Matches(NamedTuple):
    """Names that begin at some word of a batch of documents, longest only, by place; lists of one length.

    `documents` bounds the rows of each document. `concepts` is the best concept of the name, `plain` tells whether it
    is the only one and holds in small letters too.
    """

    documents: list[int]
    starts: list[int]
    ends: list[int]
    entries: list[int]
    concepts: list[int]
    plain: list[bool]


class DictionaryLinker:
    """Finds the concepts of a graph in texts.

    Of the concepts that share a name `Senses` chooses. Abbreviations that a text defines mean what their long form
    means; where that is no name of the graph, the abbreviation is not linked.
    """

    def __init__(self, dictionary: NameIndex, graph: KnowledgeGraph) -> None:
        self._dictionary = dictionary
        self._graph = graph
        self._hasher = WordHasher()
        self._words = PieceTable(self._hash_words)
        self._senses = Senses(dictionary, graph)
        self._names: dict[int, tuple[str, tuple[str, ...]]] = {}

    def link(self, documents: Sequence[Document]) -> list[Document]:
        """Return the documents with the mentions found in them, in the order of the text.

        A mention's type is the first semantic type of its concept.
        """
        matches = self._matches([document.text for document in documents])
        linked = []
        for number, document in enumerate(documents):
            rows = range(matches.documents[number], matches.documents[number + 1])
            hits = _define_abbreviations(document.text, list(self._hits(document.text, matches, rows)))
            concepts = self._senses.choose([hit.candidates for hit in hits])
            mentions = [
                Mention(start, end, document.text[start:end], *self._name(concept))
                for (start, end, _), concept in zip(hits, concepts, strict=True)
            ]
            linked.append(replace(document, mentions=tuple(mentions)))
        return linked

    def _matches(self, texts: Sequence[str]) -> _Matches:
        table, words = self._dictionary, self._words(texts)
        hashes = np.insert(words.values.view(np.uint64), words.bounds[1:], 0)  # no name reaches across documents
        found = table.longest_matches(hashes)
        behind = words.bounds[1:] + np.arange(len(texts))
        documents = np.searchsorted(behind, found.words)
        firsts = found.words - documents
        heads = table.offsets[found.entries]
        plain = (table.offsets[found.entries + 1] - heads == 1) & ~table.acronyms[heads]
        columns = (
            np.searchsorted(documents, np.arange(len(texts) + 1)),
            words.starts[firsts],
            words.ends[firsts + found.lengths - 1],
            found.entries,
            table.concepts[heads],
            plain,
        )
        return _Matches(*(column.tolist() for column in columns))

    def _hits(self, text: str, matches: _Matches, rows: range) -> Iterator[_Hit]:
        """Yield the longest match at the leftmost word, and so on behind it."""
        behind = 0
        for row in rows:
            start = matches.starts[row]
            if start < behind:
                continue
            end = matches.ends[row]
            if matches.plain[row]:
                candidates: Candidates = (matches.concepts[row],)
            else:
                candidates = self._senses.candidates(matches.entries[row], _in_capitals(text[start:end]))
            if candidates:
                yield _Hit(start, end, candidates)
                behind = end

    def _hash_words(self, text: str) -> NDArray[np.int64]:
        words = split_words(text)
        hashes = np.array(self._hasher(words.texts), np.uint64).view(np.int64)
        starts = np.array(words.starts, np.int64)
        return np.column_stack([hashes, starts, starts + np.array([len(word) for word in words.texts], np.int64)])

    def _name(self, concept: int) -> tuple[str, tuple[str, ...]]:
        """Return the type and the identifiers of a mention of this concept."""
        if concept not in self._names:
            kind = next(iter(self._senses.types(concept)), "")
            self._names[concept] = kind, (self._graph.cui(concept),)
        return self._names[concept]


def _in_capitals(surface: str) -> bool:
    return sum(letter.isupper() for letter in surface) >= 2


def _define_abbreviations(text: str, hits: list[_Hit]) -> list[_Hit]:
    """Give every occurrence of an abbreviation the concept of the long form that the text gives for it."""
    definitions = list(find_abbreviations(text)) if "(" in text else []
    if not definitions:
        return hits
    long_forms = {(hit.start, hit.end): hit.candidates for hit in hits}
    meanings: dict[str, Candidates] = {}
    for short, start, end in definitions:
        meanings.setdefault(short, long_forms.get((start, end), ()))
    shorts = "|".join(re.escape(short) for short in sorted(meanings, key=len, reverse=True))
    starts, ends = [hit.start for hit in hits], [hit.end for hit in hits]
    defined: list[_Hit] = []
    replaced: set[int] = set()
    for match in re.finditer(rf"(?<!\w)(?:{shorts})(?!\w)", text):
        new = _Hit(match.start(), match.end(), meanings[match[0]])
        touched = range(bisect_right(ends, new.start), bisect_left(starts, new.end))
        if not any(_contains(hits[number], new) for number in touched):
            replaced.update(touched)
            defined.append(new)
    kept = [hit for number, hit in enumerate(hits) if number not in replaced]
    return sorted(kept + [hit for hit in defined if hit.candidates])


def _contains(outer: _Hit, inner: _Hit) -> bool:
    return outer.start <= inner.start and inner.end <= outer.end and outer.end - outer.start > inner.end - inner.start
