"""Questions about the facts of a graph, with paraphrased relations, and the held-out facts of such an evaluation.

A question names its topic by any of the topic's names and each relation by a paraphrase. With several hops, phrases
nest: "What are the genes linked with the diseases that come with fever?" (after Rao, Mane and Paliwal,
arXiv 2211.05351).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bali_ds.files import published_file
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.graph.relations import inverse_name
from bali_ds.graph.tables import read_table

# By relation: the phrase for its tails, given the head, and the phrase for its heads, given the tail.
PHRASES = {
    "isa": ("the broader kinds of thing that {} belongs to", "the particular forms of {}"),
    "child_of": ("what stands directly above {}", "what stands directly under {}"),
    "narrower_than": ("the more general notions that cover {}", "the more special notions that {} covers"),
    "related_to": ("what {} has to do with", "what has to do with {}"),
    "similar_to": ("what {} is like", "what is like {}"),
    "possibly_synonym_of": ("what {} may be another word for", "what may be another word for {}"),
    "synonym_of": ("what {} is another word for", "what is another word for {}"),
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
    """Return a noun phrase for the concepts that a relation leads to.

    Args:
        relation: name of the relation, with underscores between words.
        topic: name or phrase of the concept that the relation starts from.
        backwards: whether the topic is the tail.
    """
    name = relation.lower()
    inverse = inverse_name(name)
    if name not in PHRASES and inverse in PHRASES:
        name, backwards = inverse, not backwards
    return PHRASES.get(name, PLAIN)[backwards].format(topic, relation=name.replace("_", " "))


LARGEST_FRONTIER = 256
"""Questions that reach more concepts than this at any hop are too vague and are dropped."""


@dataclass(frozen=True)
class GraphQuestion:
    """A question whose answers follow from a path of relations.

    Attributes:
        text: the question.
        topic: concept id of the topic.
        relations: relation ids to follow from the topic; ids >= num_relations are inverse relations.
        answer: concept id at the end of the path that the question was sampled from.
        answers: concept ids of all concepts that the relations lead to.
    """

    text: str
    topic: int
    relations: tuple[int, ...]
    answer: int
    answers: frozenset[int]


class QuestionMaker:
    """Sampler of questions from the paths of a graph."""

    def __init__(self, graph: KnowledgeGraph, seed: int, held_out: NDArray[np.bool_] | None = None) -> None:
        """Read the neighbor lists of the graph.

        Args:
            graph: the graph.
            seed: seed of all sampling.
            held_out: bool [2E], which entries of the neighbor lists are held out; None if all are known.
        """
        self.graph = graph
        self.offsets = np.asarray(graph.edge_offsets[:]).astype(np.int64)
        self.relations = np.asarray(graph.edge_relations[:]).astype(np.int64)
        self.heads, self.tails = entry_ends(graph)
        self.held_out = np.zeros(len(self.tails), bool) if held_out is None else held_out
        self._generator = np.random.default_rng(seed)

    def questions(self, hops: int, count: int, *, held_out: bool, most_answers: int) -> list[GraphQuestion]:
        """Return up to `count` distinct questions from at most 10 x `count` sampled paths.

        Args:
            hops: number of relations to follow.
            count: number of questions.
            held_out: whether the last fact of the path is held out; the facts before it are always known.
            most_answers: questions with more answers are dropped.
        """
        ends = np.flatnonzero(self.held_out == held_out)
        found: dict[tuple[int, tuple[int, ...], int], GraphQuestion] = {}
        for last in (
            self._generator.choice(ends, min(10 * count, len(ends)), replace=False).tolist() if len(ends) else ()
        ):
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
                text = self._question_text(topic, relations)
                found.setdefault((topic, relations, answer), GraphQuestion(text, topic, relations, answer, answers))
        return list(found.values())

    def _path_before(self, last: int, hops: int) -> list[int] | None:
        """Sample a path of entries that ends with `last` and visits no concept twice; None if there is none."""
        path, seen = [last], {int(self.heads[last]), int(self.tails[last])}
        for _ in range(hops - 1):
            here = int(self.heads[path[0]])
            row = slice(*self.offsets[here : here + 2])
            # the entry here -> other, read backwards, is the entry other -> here
            others = [
                (int(other), int(relation))
                for other, relation, out in zip(self.tails[row], self.relations[row], self.held_out[row], strict=True)
                if not out and int(other) not in seen
            ]
            if not others:
                return None
            other, relation = others[self._generator.integers(len(others))]
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
        """Return the concepts that the relations lead to; empty if a hop reaches too many."""
        frontier = {topic}
        for relation in relations:
            next_frontier: set[int] = set()
            for concept in frontier:
                row = slice(*self.offsets[concept : concept + 2])
                next_frontier.update(self.tails[row][self.relations[row] == relation].tolist())
            if len(next_frontier) > LARGEST_FRONTIER:
                return frozenset()
            frontier = next_frontier
        return frozenset(frontier - {topic})

    def _question_text(self, topic: int, relations: tuple[int, ...]) -> str:
        names = self.graph.names(topic) or [self.graph.cui(topic)]
        phrase = names[self._generator.integers(len(names))]
        for relation in relations:
            backwards, forward = divmod(relation, self.graph.num_relations)
            phrase = paraphrase(self.graph.relations[forward], phrase, backwards=bool(backwards))
        return f"What are {phrase}?"

    def facts(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return heads, relations and tails of the facts that are not held out."""
        own = (self.relations < self.graph.num_relations) & ~self.held_out
        return self.heads[own], self.relations[own], self.tails[own]


HELD_OUT_COLUMNS = ("head_cui", "tail_cui")


def held_out_entries(graph: KnowledgeGraph, table: Path) -> NDArray[np.bool_]:
    """Return which entries of the neighbor lists connect the two concepts of a row of the table: bool [2E].

    Raises:
        InputError: the table cannot be read or lacks a column.
    """
    found = [np.zeros(0, np.int64)]
    for frame in read_table(table, HELD_OUT_COLUMNS):
        heads, tails = (graph.lookup(frame[column].to_list()).astype(np.int64) for column in HELD_OUT_COLUMNS)
        known = (heads >= 0) & (tails >= 0)
        found.append(_pair_codes(graph, heads[known], tails[known]))
    return np.isin(_pair_codes(graph, *entry_ends(graph)), np.concatenate(found))


def sample_held_out(graph: KnowledgeGraph, table: Path, *, fraction: float, seed: int) -> None:
    """Write a random fraction of the graph's pairs of neighbors to a table for `graph build --hold-out`."""
    codes = np.unique(_pair_codes(graph, *entry_ends(graph)))
    chosen = np.sort(np.random.default_rng(seed).choice(codes, round(fraction * len(codes)), replace=False))
    with published_file(table, "w") as stream:
        stream.write("\t".join(HELD_OUT_COLUMNS) + "\n")
        for low, high in zip(*(each.tolist() for each in np.divmod(chosen, graph.num_concepts)), strict=True):
            stream.write(f"{graph.cui(low)}\t{graph.cui(high)}\n")


def entry_ends(graph: KnowledgeGraph) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the concept and the neighbor of every entry of the neighbor lists: int64 [2E] each."""
    offsets: NDArray[np.int64] = np.asarray(graph.edge_offsets[:]).astype(np.int64)
    targets: NDArray[np.int64] = np.asarray(graph.edge_targets[:]).astype(np.int64)
    return np.repeat(np.arange(graph.num_concepts), np.diff(offsets)), targets


def _pair_codes(graph: KnowledgeGraph, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return one number per unordered pair of concepts."""
    return np.minimum(first, second) * graph.num_concepts + np.maximum(first, second)
