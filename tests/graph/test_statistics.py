import networkx
import numpy as np
import pytest

from bali_ds.graph.builder import build_graph
from bali_ds.graph.graph_statistics import coverage, graph_statistics
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.graph.tables import TableSource


def test_counts_of_a_small_graph(small_graph):
    found = graph_statistics(small_graph)
    assert {key: found[key] for key in ("concepts", "names", "edges", "relations", "isolated")} == {
        "concepts": 5, "names": 9, "edges": 4, "relations": 3, "isolated": 1,
    }  # fmt: skip
    assert found["fingerprint"] == small_graph.fingerprint
    assert found["edges_by_relation"] == {"isa": 2, "has_phenotype": 1, "may_treat": 1}
    assert found["edges_by_source"] == {"MONDO": 2, "DOID": 1, "HPOA": 1, "MED-RT": 1}
    assert found["components"] == {"number": 2, "largest": 4}
    assert found["degree"]["mean"] == 1.6
    assert found["degree"]["max"] == 3
    assert found["names_per_concept"]["median"] == 2
    assert list(found["hubs"].items())[:2] == [("C1 fever", 3), ("C2 influenza", 2)]


@pytest.mark.parametrize("seed", range(6))
def test_components_are_those_of_networkx(tmp_path, seed):
    random = np.random.default_rng(seed)
    pairs = random.integers(0, 300, (random.integers(1, 300), 2)).tolist()
    pairs += [(number, number + 1) for number in range(300, 400)]
    nodes, edges = tmp_path / "nodes.tsv", tmp_path / "edges.tsv"
    nodes.write_text("cui\tpreferred_name\n" + "".join(f"{number:03}\tx\n" for number in range(401)))
    edges.write_text("head_cui\trelation\ttail_cui\n" + "".join(f"{one:03}\tr\t{other:03}\n" for one, other in pairs))
    build_graph([TableSource(nodes, edges)], tmp_path / "graph")
    graph = networkx.Graph(pairs)
    graph.add_nodes_from(range(401))
    sizes = [len(component) for component in networkx.connected_components(graph)]
    found = graph_statistics(KnowledgeGraph.open(tmp_path / "graph"))["components"]
    assert found == {"number": len(sizes), "largest": max(sizes)}


def test_coverage_counts_mentions_and_documents(small_graph):
    documents = [[(0,), (), (0, 4)], [], [(), ()], [(4,)]]
    assert coverage(small_graph, documents) == {
        "documents": 4, "documents_with_a_concept": 2, "mentions": 6, "known_mentions": 3,
        "known_mentions_with_edges": 2, "distinct_concepts": 2,
    }  # fmt: skip
