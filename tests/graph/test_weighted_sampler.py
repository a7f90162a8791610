from itertools import permutations

import numpy as np
import pytest

from bali_ds.errors import InputError
from bali_ds.graph.builder import build_graph
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.graph.neighbor_sampling import EdgeFilter, WeightedSampler
from bali_ds.graph.tables import TableSource
from bali_ds.randomness import derive


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """C00 has ten phenotypes (C01 to C10, from HPOA) and two parents (C11 from MONDO, C12 from DOID); C12 is a hub."""
    folder = tmp_path_factory.mktemp("weighted")
    concepts = [f"C{number:02}" for number in range(40)]
    nodes, edges = folder / "nodes.tsv", folder / "edges.tsv"
    header = "cui\tpreferred_name\tsynonyms\tsemantic_types\tsource_terms\n"
    nodes.write_text(header + "".join(f"{cui}\tname of {cui}\t\t\t\n" for cui in concepts))
    facts = [("C00", "has_phenotype", f"C{number:02}", "HPOA") for number in range(1, 11)]
    facts += [("C00", "isa", "C11", "MONDO"), ("C00", "isa", "C12", "DOID")]
    facts += [(f"C{number:02}", "isa", "C12", "DOID") for number in range(13, 40)]
    edges.write_text("head_cui\trelation\ttail_cui\tsource\n" + "".join("\t".join(fact) + "\n" for fact in facts))
    build_graph([TableSource(nodes, edges)], folder / "graph")
    return KnowledgeGraph.open(folder / "graph")


def sampled(graph, edge_filter, fan_out=40, samples=1, concept=0):
    sampler = WeightedSampler(graph, edge_filter)
    neighbors, _ = sampler.sample(np.full(samples, concept), fan_out, derive(5, np.arange(samples)))
    return neighbors


def as_sets(neighbors):
    return [set(row[row >= 0].tolist()) for row in neighbors]


@pytest.mark.parametrize(
    ("edge_filter", "expected"),
    [
        (EdgeFilter(), range(1, 13)),
        (EdgeFilter(relations=("isa",)), [11, 12]),
        (EdgeFilter(relations=("inverse_isa",)), [11, 12]),
        (EdgeFilter(sources=("MONDO", "HPOA")), range(1, 12)),
        (EdgeFilter(weights={"has_phenotype": 0}), [11, 12]),
        (EdgeFilter(largest_degree=20), range(1, 12)),
        (EdgeFilter(held_out=np.array([[3, 0], [0, 11], [20, 21]])), [1, 2, 4, 5, 6, 7, 8, 9, 10, 12]),
        (EdgeFilter(relations=("isa",), largest_degree=20, held_out=np.array([[0, 11]])), []),
    ],
)
def test_filters_keep_exactly_the_facts_that_pass(graph, edge_filter, expected):
    assert as_sets(sampled(graph, edge_filter)) == [set(expected)]


def test_facts_are_sampled_in_proportion_to_their_weights(graph):
    """The exact probability of each pair, sampled by weight without replacement, is enumerated."""
    weight = {"has_phenotype": 0.1, "isa": 2.0}
    kinds = ["has_phenotype"] * 10 + ["isa"] * 2
    weights = np.array([weight[kind] for kind in kinds])
    expected = np.zeros(12)
    for first, second in permutations(range(12), 2):
        probability = weights[first] / weights.sum() * weights[second] / (weights.sum() - weights[first])
        expected[first] += probability
        expected[second] += probability
    samples = 20_000
    neighbors = sampled(graph, EdgeFilter(weights=weight), fan_out=2, samples=samples)
    counts = np.bincount(neighbors.ravel(), minlength=13)[1:]
    assert np.abs(counts - samples * expected).max() < 5 * np.sqrt(samples * expected.max())


def test_a_uniform_sample_of_a_thinned_sample_follows_the_weights(graph):
    """Ten phenotypes of weight 0.4 equal four parents of weight 1: six facts are stored, two thirds phenotypes."""
    kept = EdgeFilter(weights={"has_phenotype": 0.4}, thinned=True)
    samples = 4000
    sets = as_sets(sampled(graph, kept, samples=samples))
    assert {len(found) for found in sets} == {6}
    share = sum(number <= 10 for found in sets for number in found) / (6 * samples)
    weighted = [
        found & set(range(1, 11)) for found in as_sets(sampled(graph, EdgeFilter(weights=kept.weights), 3, samples))
    ]
    assert abs(share - sum(map(len, weighted)) / (3 * samples)) < 0.05
    # Equal weights drop nothing, and at least four facts are kept however far apart the weights are.
    assert as_sets(sampled(graph, EdgeFilter(weights={"has_phenotype": 0.1, "isa": 0.1}, thinned=True))) == [
        set(range(1, 13))
    ]
    assert {len(found) for found in as_sets(sampled(graph, EdgeFilter(weights={"isa": 1e9}, thinned=True)))} == {4}


def test_a_uniform_subset_of_the_facts_of_a_hub_is_read(graph):
    samples = 6000
    neighbors = sampled(graph, EdgeFilter(most_facts_read=4), fan_out=9, samples=samples, concept=12)
    assert {len(found) for found in as_sets(neighbors)} == {4}
    counts = np.bincount(neighbors[neighbors >= 0])
    counts = counts[counts > 0]
    assert counts.size == 28
    assert np.abs(counts - samples * 4 / 28).max() < 5 * np.sqrt(samples * 4 / 28)


def test_the_sample_of_a_concept_depends_on_its_own_key_alone(graph):
    sampler = WeightedSampler(graph, EdgeFilter(weights={"isa": 3.0}, most_facts_read=8))
    keys = derive(9, np.arange(5))
    together = sampler.sample(np.array([12, 0, 0, 11, 12]), 3, keys)
    for row, concept in enumerate([12, 0, 0, 11, 12]):
        alone = sampler.sample(np.array([concept]), 3, keys[row : row + 1])
        assert [part[row].tolist() for part in together] == [part[0].tolist() for part in alone]


def test_unknown_names_and_invalid_weights_are_refused(graph):
    for kept in (EdgeFilter(relations=("isb",)), EdgeFilter(sources=("X",)), EdgeFilter(weights={"y": 1.0})):
        with pytest.raises(InputError, match=r"is not in .*; use one of"):
            WeightedSampler(graph, kept)
    for kept in (EdgeFilter(weights={"isa": -1.0}), EdgeFilter(weights={"isa": np.nan}), EdgeFilter(largest_degree=-1)):
        with pytest.raises(InputError, match="negative"):
            WeightedSampler(graph, kept)
