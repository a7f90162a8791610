"""Retrieval of facts from a knowledge graph as context for a question, within a token budget.

After KG-RAG (Soman, Rose, Morris et al., Bioinformatics 40(9), 2024): the direct neighborhood of the question's
concepts, verbalized and pruned by similarity to the question. The trained encoder disambiguates the concepts and scores
the facts.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bali_ds.corpus.name_index import NameIndex, open_dictionary, symbol_spelling
from bali_ds.corpus.normalization import WordHasher, split_words
from bali_ds.corpus.stopwords import is_stop_name
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.inference.concept_dictionary import graph_dictionary
from bali_ds.inference.encoder import Encoder, load
from bali_ds.inference.linker import Linker

LARGEST_NEIGHBORHOOD = 4096
FACTS_A_RELATION = 5
"""Facts of one relation of a concept that are kept: hundreds of children would leave no room for its treatments."""
LONGEST_PHRASE = 4
"""Words of a phrase that is linked by its vector."""
MOST_NAMES = 100_000
"""Most names whose vectors are computed for one question."""
LOWEST_LINK = 0.6
"""Cosine below which such a phrase is not a mention."""


def name_index_path(graph: Path) -> Path:
    """Return the directory of a graph's name index, which is written at its first use."""
    return graph.with_name(f"{graph.name}.dictionary")


@dataclass(frozen=True)
class FoundConcept:
    """A concept of the question: its mention, CUI, preferred name, and the cosine of name and question."""

    surface: str
    cui: str
    name: str
    score: float


@dataclass(frozen=True)
class Fact:
    """A triple with its source.

    Attributes:
        text: the verbalized triple.
        head: CUI of the head.
        relation: name of the relation.
        tail: CUI of the tail.
        source: the vocabulary that the triple comes from.
        score: cosine of text and question.
        tokens: number of tokens of the text.
    """

    text: str
    head: str
    relation: str
    tail: str
    source: str
    score: float
    tokens: int


@dataclass(frozen=True)
class Context:
    """Context of a question: its concepts and the facts selected for the prompt."""

    question: str
    concepts: tuple[FoundConcept, ...]
    facts: tuple[Fact, ...]

    @property
    def text(self) -> str:
        """The facts as one paragraph, most similar first."""
        return " ".join(f"{fact.text}." for fact in self.facts)

    @property
    def cited_text(self) -> str:
        """The same paragraph with the source of each fact in brackets."""
        return " ".join(f"{fact.text} [{fact.source}]." for fact in self.facts)


class ContextFinder:
    """Retriever of context from a graph.

    Args:
        encoder: encoder of questions, names and facts.
        graph: the graph.
        dictionary: index of the names of the graph.
        linker: makes the linker to the names of the graph that finds the concepts of a question without any name of the
            graph; called at the first such question. None: such a question has no context.
    """

    def __init__(
        self,
        encoder: Encoder,
        graph: KnowledgeGraph,
        dictionary: NameIndex,
        linker: Callable[[], Linker] | None = None,
    ) -> None:
        self._make_linker = None if linker is None else cache(linker)
        self.encoder = encoder
        self.graph = graph
        self.dictionary = dictionary
        self._hasher = WordHasher()

    @classmethod
    def open(
        cls, model: Path | str, graph: Path | str, *, device: str = "cpu", index: Path | str | None = None
    ) -> "ContextFinder":
        """Return the finder of a model and a graph directory; the index of the graph's names is written beside it once.

        Args:
            model: as for `bali_ds.load`.
            graph: the directory.
            device: device of the model.
            index: directory for the vectors of all names of the graph. With it, or if the graph has at most
                `MOST_NAMES` names, a question without a name of the graph is linked by its vectors.

        Raises:
            InputError: model, graph or index cannot be used.
        """
        opened = KnowledgeGraph.open(graph)
        encoder = load(model, device=device)

        def linker() -> Linker:
            vectors = Path(index) if index else None
            return Linker.build(encoder, graph_dictionary(opened), index=vectors, progress=True)

        is_small = opened.num_names <= MOST_NAMES
        names = open_dictionary(name_index_path(opened.path), opened)
        return cls(encoder, opened, names, linker if index or is_small else None)

    def find(self, question: str, *, token_budget: int = 256, lowest_score: float = 0.0) -> Context:
        """Return the facts most similar to the question that fit into the budget.

        Args:
            question: the question.
            token_budget: maximum tokens of all facts together.
            lowest_score: facts below this cosine are dropped.
        """
        concepts = self.concepts(question)
        facts = [fact for fact in self.facts(concepts, question) if fact.score >= lowest_score]
        return Context(question, tuple(concepts), tuple(within_budget(facts, token_budget)))

    def concepts(self, question: str) -> list[FoundConcept]:
        """Return the distinct concepts that the question names, or those that the linker finds if it names none."""
        return self._choose(question, self._surfaces(question)) or self._linked(question)

    def _linked(self, question: str) -> list[FoundConcept]:
        """Return the concepts whose names are most similar to phrases of the question that do not overlap."""
        if self._make_linker is None:
            return []
        words = split_words(question)
        ends = [start + len(text) for start, text in zip(words.starts, words.texts, strict=True)]
        common = [is_stop_name([word]) for word in words.texts]
        phrases = [
            (first, last)
            for first in range(len(ends))
            for last in range(first, min(first + LONGEST_PHRASE, len(ends)))
            if not common[first] and not common[last]
        ]
        texts = [question[words.starts[first] : ends[last]] for first, last in phrases]
        found = self._make_linker().link(texts, top=1) if texts else []
        best = sorted(
            ((row[0], phrase, text) for row, phrase, text in zip(found, phrases, texts, strict=True) if row),
            key=lambda each: (-each[0].score, each[1]),
        )
        concepts: dict[str, FoundConcept] = {}
        taken: set[int] = set()
        for candidate, (first, last), text in best:
            if candidate.score >= LOWEST_LINK and taken.isdisjoint(range(first, last + 1)):
                taken.update(range(first, last + 1))
                name = self.graph.preferred_name(int(self.graph.lookup([candidate.cui])[0]))
                concepts.setdefault(candidate.cui, FoundConcept(text, candidate.cui, name, candidate.score))
        return list(concepts.values())

    def _surfaces(self, question: str) -> list[tuple[str, list[int]]]:
        """Return the longest names of the graph in the question, each with its candidate concepts."""
        words = split_words(question)
        matches = self.dictionary.longest_matches(np.array([*self._hasher(words.texts), 0], np.uint64))
        found = []
        end_of_last = 0
        for first, length, entry in zip(*(column.tolist() for column in matches), strict=True):
            if first < end_of_last:
                continue
            start, last = words.starts[first], first + length - 1
            end = words.starts[last] + len(words.texts[last])
            own = slice(int(self.dictionary.offsets[entry]), int(self.dictionary.offsets[entry + 1]))
            spellings = np.array([0, symbol_spelling(question, start, end)], np.uint64)
            valid = self.dictionary.concept_ids[own][np.isin(self.dictionary.spellings[own], spellings)]
            if valid.size:
                found.append((question[start:end], list(dict.fromkeys(valid.tolist()))))
                end_of_last = first + length
        return found

    def _choose(self, question: str, surfaces: Sequence[tuple[str, list[int]]]) -> list[FoundConcept]:
        """Return, for each surface form, the candidate whose preferred name is most similar to the question."""
        candidates = sorted({concept for _, concepts in surfaces for concept in concepts})
        if not candidates:
            return []
        names = [self.graph.preferred_name(concept) for concept in candidates]
        scores = dict(zip(candidates, self._similar(question, names), strict=True))
        found: dict[int, FoundConcept] = {}
        for surface, concepts in surfaces:
            best = max(concepts, key=lambda concept: scores[concept])
            name = self.graph.preferred_name(best)
            found.setdefault(best, FoundConcept(surface, self.graph.cui(best), name, float(scores[best])))
        return list(found.values())

    def facts(self, concepts: Sequence[FoundConcept], question: str) -> list[Fact]:
        """Return the distinct facts around concepts, by descending similarity to the question.

        Facts that read the same are one, and of each relation of a concept the `FACTS_A_RELATION` most similar remain.
        """
        graph = self.graph
        triples: dict[tuple[int, int, int], int] = {}
        for concept in graph.lookup([found.cui for found in concepts]).tolist():
            start, end = int(graph.edge_offsets[concept]), int(graph.edge_offsets[concept + 1])
            rows = slice(start, min(end, start + LARGEST_NEIGHBORHOOD))
            columns = (graph.edge_relations, graph.edge_targets, graph.edge_sources)
            for relation, other, source in zip(*(column[rows].tolist() for column in columns), strict=True):
                inverse = relation >= graph.num_relations
                triple = (other, relation - graph.num_relations, concept) if inverse else (concept, relation, other)
                triples.setdefault(triple, source)
        texts = [verbalize(graph, *triple) for triple in triples]
        scores = self._similar(question, texts)
        tokens = self.encoder.lengths(texts)
        found = [
            Fact(
                text=texts[row],
                head=graph.cui(head),
                relation=graph.relation_name(relation),
                tail=graph.cui(tail),
                source=graph.sources[source],
                score=float(scores[row]),
                tokens=tokens[row],
            )
            for row, ((head, relation, tail), source) in enumerate(triples.items())
        ]
        return _useful(sorted(found, key=lambda fact: -fact.score), {concept.cui for concept in concepts})

    def _similar(self, question: str, texts: Sequence[str]) -> NDArray[np.float32]:
        distinct = list(dict.fromkeys(texts))
        (asked,) = self.encoder.encode([question], query=True)
        of_text = dict(zip(distinct, self.encoder.encode(distinct) @ asked, strict=True))
        return np.array([of_text[text] for text in texts], np.float32)


def _useful(facts: Sequence[Fact], concepts: set[str]) -> list[Fact]:
    """Return the facts, most similar first, without repetitions and without the tail of long relations."""
    counts: Counter[tuple[str, str, bool]] = Counter()
    texts: set[str] = set()
    kept = []
    for fact in facts:
        forward = fact.head in concepts
        group = (fact.head if forward else fact.tail, fact.relation, forward)
        if fact.text not in texts and counts[group] < FACTS_A_RELATION:
            counts[group] += 1
            texts.add(fact.text)
            kept.append(fact)
    return kept


def within_budget(facts: Sequence[Fact], token_budget: int) -> list[Fact]:
    """Select facts in order while they fit into the budget; a fact that does not fit is skipped."""
    chosen = []
    for fact in facts:
        if fact.tokens <= token_budget:
            chosen.append(fact)
            token_budget -= fact.tokens
    return chosen


def verbalize(graph: KnowledgeGraph, head: int, relation: int, tail: int) -> str:
    """Return a triple as text: the name of the head, the relation without underscores, the name of the tail."""
    return " ".join(
        (graph.preferred_name(head), graph.relation_name(relation).replace("_", " "), graph.preferred_name(tail))
    )
