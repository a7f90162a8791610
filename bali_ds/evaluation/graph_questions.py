"""Questions that a graph answers, in words other than the graph's own.

A question names its topic by any of the topic's names and each relation by a paraphrase; over several hops phrases
nest: "What are the genes linked with the diseases that come with fever?" (after the setting of Rao, Mane and Paliwal,
arXiv 2211.05351).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bali_ds.evaluation.held_out_facts import entry_ends
from bali_ds.graph.knowledge_graph import KnowledgeGraph

# By relation: what is asked for where the topic is the head, and where it is the tail.
PHRASES = {
    "isa": ("the broader kinds of thing that {} belongs to", "the particular forms of {}"),
    "mesh_narrower_than": ("the wider headings above {}", "the narrower headings under {}"),
    "part_of": ("the whole that {} is a piece of", "the pieces that make up {}"),
    "anatomic_structure_is_physical_part_of": ("the larger structure around {}", "the structures inside {}"),
    "anatomic_structure_has_location": ("where in the body {} lies", "what lies in {}"),
    "has_phenotype": ("the signs and abnormalities seen in {}", "the disorders in which one sees {}"),
    "disease_has_finding": ("the signs and symptoms of {}", "the disorders in which one sees {}"),
    "disease_may_have_finding": ("what one sometimes observes in {}", "the disorders sometimes accompanied by {}"),
    "disease_excludes_finding": ("what never accompanies {}", "the disorders that {} speaks against"),
    "has_finding_site": ("the part of the body that {} affects", "the disorders located in {}"),
    "disease_has_primary_anatomic_site": ("the organ in which {} begins", "the disorders that begin in {}"),
    "disease_has_associated_anatomic_site": ("the organs touched by {}", "the disorders that touch {}"),
    "disease_has_associated_disease": ("the illnesses that go along with {}", "the illnesses that {} goes along with"),
    "disease_may_have_associated_disease": ("what one may find beside {}", "the illnesses beside which {} turns up"),
    "disease_has_normal_cell_origin": ("the cells from which {} develops", "the disorders that develop from {}"),
    "disease_has_normal_tissue_origin": ("the tissue from which {} develops", "the disorders that grow out of {}"),
    "disease_has_associated_gene": ("the genes linked with {}", "the illnesses linked with the gene {}"),
    "disease_mapped_to_gene": ("the genes located for {}", "the illnesses traced to {}"),
    "gene_involved_in_pathogenesis_of_disease": ("the illnesses that {} helps to bring about", "the genes behind {}"),
    "has_causative_agent": ("what {} is caused by", "the illnesses that {} causes"),
    "due_to": ("the underlying reasons for {}", "the consequences of {}"),
    "induced_by": ("the substances that bring {} about", "what exposure to {} can bring about"),
    "may_treat": ("the conditions against which {} helps", "the medicines used against {}"),
    "may_prevent": ("the conditions that {} keeps away", "the medicines that keep {} away"),
    "contraindicated_with_disease": ("the conditions in which one must not give {}", "the medicines forbidden in {}"),
}  # fmt: skip
PLAIN = ("the things to which {} stands as {relation}", "the things that stand to {} as {relation}")


def paraphrase(relation: str, topic: str, *, backwards: bool) -> str:
    """Return a noun phrase for what a relation leads to.

    Args:
        relation: its name, underscores between words.
        topic: the name or phrase it starts from.
        backwards: whether the topic is the tail.
    """
    words = relation.replace("_", " ").lower()
    return PHRASES.get(relation.lower(), PLAIN)[backwards].format(topic, relation=words)


LARGEST_FRONTIER = 256
"""Questions with more concepts than this at any hop are too vague to ask."""


@dataclass(frozen=True)
class GraphQuestion:
    """One question.

    Attributes:
        text: in words.
        topic: concept id of what it is about.
        relations: relation ids to follow from the topic, those from R on against their direction.
        answer: the end of the path it was made from.
        answers: all concepts that the relations lead to.
    """

    text: str
    topic: int
    relations: tuple[int, ...]
    answer: int
    answers: frozenset[int]


class QuestionMaker:
    """Draws questions from the paths of a graph."""

    def __init__(self, graph: KnowledgeGraph, seed: int, held_out: NDArray[np.bool_] | None = None) -> None:
        """Read the neighbor lists.

        Args:
            graph: the facts.
            seed: of all draws.
            held_out: bool [2E] over the entries of the neighbor lists; None: none is.
        """
        self.graph = graph
        self.offsets = np.asarray(graph.edge_offsets[:]).astype(np.int64)
        self.relations = np.asarray(graph.edge_relations[:]).astype(np.int64)
        self.heads, self.tails = entry_ends(graph)
        self.held_out = np.zeros(len(self.tails), bool) if held_out is None else held_out
        self._draw = np.random.default_rng(seed)

    def questions(self, hops: int, count: int, *, held_out: bool, most_answers: int) -> list[GraphQuestion]:
        """Return up to `count` questions, as many as the graph gives in ten times as many attempts.

        Args:
            hops: relations to follow.
            count: how many questions.
            held_out: whether the last fact of the path is a held-out one; all before are not.
            most_answers: vaguer questions are left out.
        """
        ends = np.flatnonzero(self.held_out == held_out)
        found: dict[tuple[int, tuple[int, ...], int], GraphQuestion] = {}
        for last in self._draw.choice(ends, min(10 * count, len(ends)), replace=False).tolist() if len(ends) else ():
            if len(found) == count:
                break
            path = self._path_before(last, hops)
            if path is None:
                continue
            topic, relations, answer = (
                int(self.heads[path[0]]),
                tuple(self.relations[path].tolist()),
                int(self.tails[last]),
            )
            answers = self._reached(topic, relations)
            if answer != topic and 0 < len(answers) <= most_answers:
                text = self._worded(topic, relations)
                found.setdefault((topic, relations, answer), GraphQuestion(text, topic, relations, answer, answers))
        return list(found.values())

    def _path_before(self, last: int, hops: int) -> list[int] | None:
        """Return entries that lead to an entry and end with it, no concept twice; None where there is no way on."""
        path, seen = [last], {int(self.heads[last]), int(self.tails[last])}
        for _ in range(hops - 1):
            here = int(self.heads[path[0]])
            row = slice(*self.offsets[here : here + 2])
            # An entry here -> other read backwards is the entry other -> here.
            others = [
                (int(other), int(relation))
                for other, relation, out in zip(self.tails[row], self.relations[row], self.held_out[row], strict=True)
                if not out and int(other) not in seen
            ]
            if not others:
                return None
            other, relation = others[self._draw.integers(len(others))]
            path.insert(0, self._entry(other, self._inverse(relation), here))
            seen.add(other)
        return path

    def _inverse(self, relation: int) -> int:
        count = self.graph.num_relations
        return relation - count if relation >= count else relation + count

    def _entry(self, head: int, relation: int, tail: int) -> int:
        start, end = self.offsets[head : head + 2]
        matches = (self.relations[start:end] == relation) & (self.tails[start:end] == tail)
        return int(start + np.flatnonzero(matches)[0])

    def _reached(self, topic: int, relations: tuple[int, ...]) -> frozenset[int]:
        """Return the concepts at the end of the relations, none where there are too many on the way."""
        frontier = {topic}
        for relation in relations:
            following: set[int] = set()
            for concept in frontier:
                row = slice(*self.offsets[concept : concept + 2])
                following.update(self.tails[row][self.relations[row] == relation].tolist())
            if len(following) > LARGEST_FRONTIER:
                return frozenset()
            frontier = following
        return frozenset(frontier - {topic})

    def _worded(self, topic: int, relations: tuple[int, ...]) -> str:
        names = self.graph.names(topic) or [self.graph.cui(topic)]
        phrase = names[self._draw.integers(len(names))]
        for relation in relations:
            backwards, forward = divmod(relation, self.graph.num_relations)
            phrase = paraphrase(self.graph.relations[forward], phrase, backwards=bool(backwards))
        return f"What are {phrase}?"

    def facts(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return heads, relations and tails of all facts that are not held out, each once."""
        own = (self.relations < self.graph.num_relations) & ~self.held_out
        return self.heads[own], self.relations[own], self.tails[own]
