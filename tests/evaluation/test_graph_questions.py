"""Questions that a graph answers: their answers by a slow plain walk, the ranking of answers, the recall of context."""

from collections import defaultdict

import numpy as np
import pytest

import bali_ds
from bali_ds.cli import main
from bali_ds.corpus.name_index import open_dictionary
from bali_ds.evaluation.context_recall import evaluate_context, supporting_triples
from bali_ds.evaluation.graph_questions import (
    GraphQuestion,
    QuestionMaker,
    held_out_entries,
    paraphrase,
    sample_held_out,
)
from bali_ds.evaluation.multi_hop import MultiHopTraining, evaluate_multi_hop, filtered_ranks
from bali_ds.graph.builder import build_graph
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.graph.relations import UMLS_RELATIONS
from bali_ds.graph.tables import TableSource
from bali_ds.inference.context import ContextFinder

NODES = 40


@pytest.fixture(scope="session")
def graph(graph_directory):
    return KnowledgeGraph.open(graph_directory)


@pytest.fixture
def ring(tmp_path):
    """A ring of 40 concepts, two steps apart and three steps apart: every answer follows from the rest of the ring."""
    rows = [f"C{n:02d}\tnumber {n}\t\tT1\t\t" for n in range(NODES)]
    header = "cui\tpreferred_name\tsynonyms\tsemantic_types\tgroup\tsource_terms"
    (tmp_path / "nodes.tsv").write_text("\n".join([header, *rows]) + "\n")
    facts = [
        f"C{n:02d}\t{relation}\tC{(n + step) % NODES:02d}\tMADE"
        for n in range(NODES)
        for relation, step in (("second_after", 2), ("third_after", 3), ("next_to", 1))
    ]
    (tmp_path / "edges.tsv").write_text("\n".join(["head_cui\trelation\ttail_cui\tsource", *facts]) + "\n")
    build_graph([TableSource(tmp_path / "nodes.tsv", tmp_path / "edges.tsv")], tmp_path / "ring")
    return KnowledgeGraph.open(tmp_path / "ring")


def edges_of(directory):
    """(head, relation, tail) of every fact and of its inverse, read off the table that the graph was built from."""
    rows = [line.split("\t") for line in (directory.parent / "edges.tsv").read_text().splitlines()[1:]]
    found = defaultdict(set)
    for head, relation, tail, _ in rows:
        found[head, relation, False].add(tail)
        found[tail, relation, True].add(head)
    return found


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_answers_are_those_of_a_plain_walk(graph, graph_directory, hops):
    edges = edges_of(graph_directory)
    questions = QuestionMaker(graph, 0).questions(hops, 50, held_out=False, most_answers=30)
    assert len(questions) == 50
    for question in questions:
        frontier = {graph.cui(question.topic)}
        for relation in question.relations:
            backwards, number = divmod(relation, graph.num_relations)
            frontier = set().union(*(edges[cui, graph.relations[number], bool(backwards)] for cui in frontier))
        assert {graph.cui(answer) for answer in question.answers} == frontier - {graph.cui(question.topic)}
        assert question.answer in question.answers
        assert any(name in question.text for name in graph.names(question.topic))


@pytest.mark.parametrize("backwards", [False, True])
def test_hierarchies_of_the_umls_are_paraphrased_from_both_ends(backwards):
    above, below = "what stands directly above asthma", "what stands directly under asthma"
    assert paraphrase("child_of", "asthma", backwards=backwards) == (below if backwards else above)
    assert paraphrase("parent_of", "asthma", backwards=backwards) == (above if backwards else below)
    for relation in set(UMLS_RELATIONS.values()) - {"qualifier_of", "qualified_by", "sibling_of"}:
        words = relation.replace("_", " ")
        assert words not in paraphrase(relation, "asthma", backwards=backwards)


def test_only_the_last_fact_of_a_path_is_held_out(graph, tmp_path):
    sample_held_out(graph, tmp_path / "held.tsv", fraction=0.3, seed=1)
    pairs = [line.split("\t") for line in (tmp_path / "held.tsv").read_text().splitlines()[1:]]
    held_out = {frozenset(pair) for pair in pairs}
    entries = held_out_entries(graph, tmp_path / "held.tsv")
    maker = QuestionMaker(graph, 0, entries)
    ends = zip(maker.heads, maker.tails, strict=True)
    assert entries.tolist() == [frozenset((graph.cui(a), graph.cui(b))) in held_out for a, b in ends]
    known = {frozenset((graph.cui(a), graph.cui(b))) for a, _, b in zip(*maker.facts(), strict=True)}
    assert known.isdisjoint(held_out)
    for last_is_out in (True, False):
        for question in maker.questions(1, 40, held_out=last_is_out, most_answers=100):
            assert (frozenset((graph.cui(question.topic), graph.cui(question.answer))) in held_out) == last_is_out


def test_ranks_leave_other_right_answers_and_the_topic_out():
    question = GraphQuestion("?", topic=0, relations=(0,), answer=3, answers=frozenset({1, 3}))
    scores = np.array([[9, 8, 7, 5, 5, 1, 5]], np.float32)
    # above: 2 alone; 0 is the topic, 1 another answer; two ties, of which one counts
    assert filtered_ranks(scores, [question]).tolist() == [3]


class Oracle:
    """Encodes a number as a point on a circle, and a question as its words."""

    def encode(self, texts, **_):
        vectors = np.zeros((len(texts), 8), np.float32)
        for row, text in enumerate(texts):
            digits = "".join(letter for letter in text if letter.isdigit())
            angle = 2 * np.pi * int(digits) / NODES
            vectors[row, :2] = np.cos(angle), np.sin(angle)
            for place, word in enumerate(("second", "third", "next")):
                vectors[row, 2 + place] = text.count(word)
            vectors[row, 5] = "stand to" in text
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_what_an_encoder_knows_is_found_and_what_it_does_not_know_is_not(ring, tmp_path):
    sample_held_out(ring, tmp_path / "held.tsv", fraction=0.1, seed=0)
    maker = QuestionMaker(ring, 0, held_out_entries(ring, tmp_path / "held.tsv"))
    known = maker.questions(1, 400, held_out=False, most_answers=10)
    asked = [
        *maker.questions(1, 40, held_out=True, most_answers=10),
        *maker.questions(2, 40, held_out=True, most_answers=10),
    ]

    class Ignorant:
        def encode(self, texts, **_):
            return np.full((len(texts), 8), 8**-0.5, np.float32)

    training = MultiHopTraining(epochs=150, graph_epochs=400, width=16)
    table = evaluate_multi_hop({"oracle": Oracle(), "ignorant": Ignorant()}, maker, known, asked, training)
    assert set(table) == {"1", "2"}
    one, two = table["1"]["systems"], table["2"]["systems"]
    assert one["oracle"]["hits@10"]["value"] > 0.9
    assert one["ignorant"]["hits@1"]["value"] == 0
    baseline = "RotatE, given the relations"
    assert one[baseline]["hits@10"]["value"] > 0.8
    assert two[baseline]["hits@10"]["value"] > 0.8


def test_recall_of_context_grows_to_everything(tiny_encoder, graph, tmp_path):
    finder = ContextFinder(bali_ds.load(tiny_encoder), graph, open_dictionary(tmp_path / "words", graph))
    questions = QuestionMaker(graph, 3).questions(1, 20, held_out=False, most_answers=5)
    for question in questions:
        for head, relation, tail in supporting_triples(graph, question):
            assert graph.cui(question.topic) in (head, tail)
            assert relation in graph.relations
    result = evaluate_context({"tiny": finder}, questions, (8, 10**6))
    for system in ("no pruning", "tiny"):
        small, all_of_it = (result["systems"][system][budget] for budget in ("8", str(10**6)))
        assert small["recall"]["value"] < all_of_it["recall"]["value"] == 1
        assert small["tokens"] <= 8


def test_the_commands(tiny_encoder, graph_directory, tmp_path, capsys):
    options = ["--model", str(tiny_encoder), "--graph", str(graph_directory), "--questions", "10"]
    assert main(["evaluate", "context", *options]) == 0
    assert "no pruning" in capsys.readouterr().out
    held_out = tmp_path / "held.tsv"
    assert main(["evaluate", "multi-hop", *options, "--held-out", str(held_out)]) == 0
    assert held_out.read_text().startswith("head_cui\ttail_cui\n")
    assert "RotatE" in capsys.readouterr().out
    held_out.write_text("head\ttail\n")
    assert main(["evaluate", "multi-hop", *options, "--held-out", str(held_out)]) == 2
    assert "head_cui" in capsys.readouterr().err
