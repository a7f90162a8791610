import bali_ds
from bali_ds.corpus.name_index import open_dictionary
from bali_ds.graph.builder import build_graph
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.graph.tables import TableSource
from bali_ds.inference.context import ContextFinder


def test_symbols_of_a_question_are_whole_and_spelled_as_in_the_graph(tiny_encoder, tmp_path):
    nodes, edges = tmp_path / "nodes.tsv", tmp_path / "edges.tsv"
    nodes.write_text("cui\tpreferred_name\tsynonyms\nC1\tIGHM gene\tIGM\nC2\tAnxiety\tGAD\nC3\tgad\t\n")
    edges.write_text("head_cui\trelation\ttail_cui\nC1\tisa\tC2\n")
    build_graph([TableSource(nodes, edges)], tmp_path / "graph")
    graph = KnowledgeGraph.open(tmp_path / "graph")
    finder = ContextFinder(bali_ds.load(tiny_encoder), graph, open_dictionary(tmp_path / "words", graph))

    def found(question):
        return [(concept.surface, concept.cui) for concept in finder.concepts(question)]

    assert found("Is IgM, not IGM, high in anxiety?") == [("IGM", "C1"), ("anxiety", "C2")]
    assert found("What is the GAD-7?") == [("GAD", "C3")]
    assert found("What does igm do?") == []
