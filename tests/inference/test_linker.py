"""Linking and context by a tiny encoder over the small graph, from Python and from the command line."""

import json
import sys
from io import StringIO

import numpy as np
import pytest

import bali_ds
from bali_ds.cli import main
from bali_ds.corpus.name_index import open_dictionary
from bali_ds.errors import InputError
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.inference.concept_dictionary import graph_dictionary, read_dictionary
from bali_ds.inference.context import FACTS_A_RELATION, Context, ContextFinder, FoundConcept, verbalize
from bali_ds.inference.linker import Candidate, Linker


@pytest.fixture
def names(tmp_path):
    file = tmp_path / "dictionary.txt"
    file.write_text("C1||name 1\nC1|C2||pair 2 3\nC3||name 1 plus\nC4||mention 7 8 9\n")
    return file


@pytest.fixture(scope="session")
def graph(graph_directory):
    return KnowledgeGraph.open(graph_directory)


@pytest.fixture
def finder(tiny_encoder, graph, tmp_path):
    return ContextFinder(bali_ds.load(tiny_encoder), graph, open_dictionary(tmp_path / "words", graph))


def test_a_name_links_to_its_concepts(tiny_encoder, names):
    linker = Linker.build(bali_ds.load(tiny_encoder), read_dictionary(names))
    (first, second) = linker.link(["pair 2 3", "mention 7 8 9"], top=3)
    assert [candidate.cui for candidate in first[:2]] == ["C1", "C2"]
    assert first[0].name == "pair 2 3"
    assert first[0].score == pytest.approx(1, abs=1e-5)
    assert second[0].cui == "C4"
    assert len({candidate.cui for candidate in second}) == len(second) == 3


def test_approximate_search_links_alike_where_names_are_few(tiny_encoder, names):
    encoder, dictionary = bali_ds.load(tiny_encoder), read_dictionary(names)
    exact, approximate = (Linker.build(encoder, dictionary, approximate=each) for each in (False, True))
    for ours, theirs in zip(
        exact.link(["pair 2 3", "name 1"], top=3), approximate.link(["pair 2 3", "name 1"], top=3), strict=True
    ):
        assert [each.cui for each in ours] == [each.cui for each in theirs]


def test_kept_vectors_serve_again_and_only_their_own_names(tiny_encoder, names, tmp_path):
    encoder, dictionary = bali_ds.load(tiny_encoder), read_dictionary(names)
    made = Linker.build(encoder, dictionary, index=tmp_path / "index")
    again = Linker.build(encoder, dictionary, index=tmp_path / "index")
    assert np.array_equal(made.vectors, again.vectors)
    names.write_text("C1||another\n")
    with pytest.raises(InputError, match="vectors of other names"):
        Linker.build(encoder, read_dictionary(names), index=tmp_path / "index")


def test_vectors_are_kept_in_an_empty_directory_and_not_among_files_of_the_user(tiny_encoder, names, tmp_path):
    encoder, dictionary, index = bali_ds.load(tiny_encoder), read_dictionary(names), tmp_path / "index"
    index.mkdir()
    (index / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"index: holds thesis\.tex, which is not part of the vectors of names"):
        Linker.build(encoder, dictionary, index=index)
    (index / "thesis.tex").unlink()
    Linker.build(encoder, dictionary, index=index)
    assert sorted(path.name for path in index.iterdir()) == ["index.json", "vectors.npy"]


def test_every_name_of_a_graph_is_in_its_dictionary(graph):
    dictionary = graph_dictionary(graph)
    assert set(dictionary.names) == {name for concept in range(graph.num_concepts) for name in graph.names(concept)}
    assert dictionary.concepts_of(dictionary.names.index("synonym 7")) == ["C0000007"]


def test_context_names_facts_with_provenance_within_the_budget(finder, graph):
    found = finder.find("Does synonym 5 follow from synonym 12?", token_budget=60)
    assert [concept.cui for concept in found.concepts] == ["C0000005", "C0000012"]
    assert sum(fact.tokens for fact in found.facts) <= 60
    assert [fact.score for fact in found.facts] == sorted((fact.score for fact in found.facts), reverse=True)
    for fact in found.facts:
        head, tail = graph.lookup([fact.head, fact.tail]).tolist()
        relation = graph.relations.index(fact.relation)
        assert fact.text == verbalize(graph, head, relation, tail)
        assert fact.source == "MADE"
        assert {fact.head, fact.tail} & {"C0000005", "C0000012"}
    everything = finder.find("Does synonym 5 follow from synonym 12?", token_budget=10**6)
    rows = sum(int(graph.edge_offsets[c + 1] - graph.edge_offsets[c]) for c in (5, 12))
    shared = sum(1 for fact in everything.facts if {fact.head, fact.tail} == {"C0000005", "C0000012"})
    assert len(everything.facts) == rows - shared


def test_a_question_that_names_nothing_is_linked_by_vectors(graph, finder):
    question = "mention quux plumb"
    assert finder.find(question).facts == ()
    linked = ContextFinder(finder.encoder, graph, finder.dictionary, Fixed)
    found = linked.find(question)
    assert [(each.surface, each.cui) for each in found.concepts] == [("mention quux plumb", graph.cui(3))]
    assert found.facts
    assert linked.find("of the and").concepts == ()


class Fixed:
    """A linker that knows one phrase."""

    def link(self, mentions, *, top):  # noqa: ARG002
        score = {"mention quux plumb": 0.9, "mention": 0.7, "quux plumb": 0.3}
        return [[Candidate("C0000003", "any", score.get(mention, 0.1))] for mention in mentions]


def test_facts_are_distinct_few_of_a_relation_and_cited(finder, graph):
    hub = FoundConcept("hub", graph.cui(0), graph.preferred_name(0), 1.0)
    facts = finder.facts([hub], "any question")
    assert len({fact.text for fact in facts}) == len(facts)
    assert sum(fact.relation == "has_part" and fact.head == graph.cui(0) for fact in facts) == FACTS_A_RELATION
    assert [fact.score for fact in facts] == sorted((fact.score for fact in facts), reverse=True)
    context = Context("any question", (hub,), tuple(facts[:2]))
    assert context.cited_text == f"{facts[0].text} [MADE]. {facts[1].text} [MADE]."


def test_a_question_without_concepts_has_no_context(finder):
    found = finder.find("Why?")
    assert (found.concepts, found.facts, found.text) == ((), (), "")


def test_the_commands(tiny_encoder, names, graph_directory, tmp_path, capsys, monkeypatch):
    mentions = tmp_path / "mentions.txt"
    mentions.write_text("name 1\npair 2 3\n")
    model = ["--model", str(tiny_encoder)]
    assert main(["encode", *model, str(mentions), "--out", str(tmp_path / "out.npy")]) == 0
    vectors = np.load(tmp_path / "out.npy")
    assert np.allclose(vectors, bali_ds.load(tiny_encoder).encode(["name 1", "pair 2 3"]))
    capsys.readouterr()
    assert main(["link", *model, "--dictionary", str(names), "--top", "2", str(mentions)]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:3] == ["name 1", "C1", "name 1"]
    monkeypatch.setattr(sys, "stdin", StringIO("pair 2 3\n"))
    assert main(["link", *model, "--graph", str(graph_directory), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["mention"] == "pair 2 3"
    assert main(["context", *model, "--graph", str(graph_directory), "--json", "About synonym 3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"question", "concepts", "facts", "text", "cited_text"}
    assert main(["encode", *model, str(tmp_path / "none"), "--out", str(tmp_path / "x.npy")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_link_reads_standard_input_once(tiny_encoder, names, tmp_path, capsys, monkeypatch):
    """In batches, with empty lines, and without looking for the end twice."""
    text = "name 1\n\npair 2 3\nname 1\nplus\n"
    (tmp_path / "lines.txt").write_text(text)
    monkeypatch.setattr("bali_ds.cli.inference.LINES_AT_ONCE", 2)
    link = ["link", "--model", str(tiny_encoder), "--dictionary", str(names)]
    assert main([*link, str(tmp_path / "lines.txt")]) == 0
    expected = capsys.readouterr().out
    asked = []

    class Once(StringIO):
        def readline(self, size=-1):
            line = super().readline(size)
            assert asked[-1:] != [""], "read again after its end"
            asked.append(line)
            return line

    monkeypatch.setattr(sys, "stdin", Once(text))
    assert main([*link, "-"]) == 0
    assert capsys.readouterr().out == expected
    assert asked == [*text.splitlines(keepends=True), ""]


def test_encode_gives_a_vector_for_each_line_of_a_file_or_of_standard_input(tiny_encoder, tmp_path, monkeypatch):
    text = "renal failure\n\nanemia\n"
    (tmp_path / "lines.txt").write_text(text)
    monkeypatch.setattr("sys.stdin", StringIO(text))
    encode = ["encode", "--model", str(tiny_encoder), "--out"]
    assert main([*encode, str(tmp_path / "file.npy"), str(tmp_path / "lines.txt")]) == 0
    assert main([*encode, str(tmp_path / "stdin.npy"), "-"]) == 0
    expected = bali_ds.load(tiny_encoder).encode(text.splitlines())
    for name in ("file", "stdin"):
        assert np.array_equal(np.load(tmp_path / f"{name}.npy"), expected)
