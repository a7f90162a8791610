"""Retrieval of facts from a knowledge graph as context for a question, within a token budget.

After KG-RAG (Soman, Rose, Morris et al., Bioinformatics 40(9), 2024): the direct neighborhood of the question's
concepts, verbalized and pruned by similarity to the question. The trained encoder disambiguates the concepts and scores
the facts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bali_ds.corpus.name_index import NameIndex, symbol_spelling
from bali_ds.corpus.normalization import WordHasher, split_words
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.inference.encoder import Encoder

LARGEST_NEIGHBORHOOD = 4096


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


class ContextFinder:
    """Retriever of context from a graph.

    Args:
        encoder: encoder of questions, names and facts.
        graph: the graph.
        dictionary: index of the names of the graph.
    """

    def __init__(self, encoder: Encoder, graph: KnowledgeGraph, dictionary: NameIndex) -> None:
        self.encoder = encoder
        self.graph = graph
        self.dictionary = dictionary
        self._hasher = WordHasher()

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
        """Return the distinct concepts that the question names."""
        return self._choose(question, self._surfaces(question))

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
        """Return the distinct facts around concepts, by descending similarity to the question."""
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
        return sorted(found, key=lambda fact: -fact.score)

    def _similar(self, question: str, texts: Sequence[str]) -> NDArray[np.float32]:
        distinct = list(dict.fromkeys(texts))
        vectors = self.encoder.encode([question, *distinct])
        of_text = dict(zip(distinct, vectors[1:] @ vectors[0], strict=True))
        return np.array([of_text[text] for text in texts], np.float32)


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
