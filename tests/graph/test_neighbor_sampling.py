from collections import Counter

import numpy as np
import pytest

from bali_ds.errors import InputError
from bali_ds.graph.builder import build_graph
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.graph.neighbor_sampling import sample_neighbors
from bali_ds.graph.tables import TableSource
from bali_ds.randomness import derive


def test_neighbors_are_sampled_without_replacement_from_the_list_of_their_concept(small_graph):
    concepts = np.repeat(np.arange(5), 200)
    neighbors, relations = sample_neighbors(small_graph, concepts, 2, derive(7, np.arange(1000)))
    for concept, sampled in zip(concepts, np.stack([neighbors, relations], axis=-1), strict=True):
        row = slice(small_graph.edge_offsets[concept], small_graph.edge_offsets[concept + 1])
        facts = Counter(zip(small_graph.edge_targets[row], small_graph.edge_relations[row], strict=True))
        pairs = Counter(map(tuple, sampled[sampled[:, 0] >= 0].tolist()))
        assert sum(pairs.values()) == min(2, sum(facts.values()))
        assert all(facts[pair] >= count for pair, count in pairs.items())


def test_the_sample_of_a_concept_depends_on_its_own_key_alone(small_graph):
    keys = derive(1, np.arange(6))
    together = sample_neighbors(small_graph, np.array([2, 0, 1, 2, 4, 0]), 2, keys)
    alone = sample_neighbors(small_graph, np.array([2]), 2, keys[3:4])
    assert [part[3].tolist() for part in together] == [part[0].tolist() for part in alone]


def test_sampling_is_uniform(tmp_path):
    nodes, edges = tmp_path / "nodes.tsv", tmp_path / "edges.tsv"
    nodes.write_text(
        "cui\tpreferred_name\tsynonyms\tsemantic_types\tsource_terms\n"
        + "".join(f"C{number}\tname {number}\t\t\t\n" for number in range(9))
    )
    edges.write_text(
        "head_cui\trelation\ttail_cui\tsource\n" + "".join(f"C0\tcauses\tC{number}\tX\n" for number in range(1, 9))
    )
    build_graph([TableSource(nodes, edges)], tmp_path / "graph")
    graph = KnowledgeGraph.open(tmp_path / "graph")
    samples = 40_000
    neighbors, _ = sample_neighbors(graph, np.zeros(samples, int), 3, derive(3, np.arange(samples)))
    counts = np.bincount(neighbors.ravel(), minlength=9)[1:]
    expected = samples * 3 / 8
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_no_concepts_and_unknown_concepts(small_graph):
    neighbors, relations = sample_neighbors(small_graph, np.zeros(0, int), 3, derive(np.zeros(0, int)))
    assert neighbors.shape == relations.shape == (0, 3)
    with pytest.raises(InputError, match="has 5 concepts"):
        sample_neighbors(small_graph, np.array([5]), 3, derive(1))
