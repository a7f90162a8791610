"""The description of the space of names, against brute force."""

import numpy as np
import pytest

from bali_ds.evaluation.charts import scatter_chart
from bali_ds.evaluation.embedding_map import GROUPS, describe_embedding, semantic_group
from bali_ds.evaluation.report import write_report
from bali_ds.files import write_json
from bali_ds.graph.knowledge_graph import KnowledgeGraph


class Letters:
    """Encodes a string by how often each character occurs."""

    def encode(self, texts, **_):
        vectors = np.array([[text.count(chr(code)) for code in range(32, 127)] for text in texts], np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def described(graph_directory):
    return describe_embedding({"untrained": Letters(), "trained": Letters()}, KnowledgeGraph.open(graph_directory), 3)


def test_neighbors_are_the_nearest(described, graph_directory):
    graph = KnowledgeGraph.open(graph_directory)
    names = [graph.preferred_name(concept) for concept in range(graph.num_concepts)]
    cosines = Letters().encode(names) @ Letters().encode(names).T
    np.fill_diagonal(cosines, -1)
    assert len(described["neighbors"]) == 12
    for example in described["neighbors"]:
        row = cosines[names.index(example["name"])]
        assert [each["cosine"] for each in example["trained"]] == pytest.approx(np.sort(row)[::-1][:4], abs=6e-4)
        for each in example["trained"]:
            assert each["cosine"] == pytest.approx(row[names.index(each["name"])], abs=6e-4)


def test_the_map_places_every_name_and_keeps_neighbors_near(described):
    places = np.array(described["maps"]["trained"])
    assert places.shape == (len(described["names"]), 2)
    assert places.min() == 0
    assert places.max() == 1
    assert described["maps"]["trained"] == described["maps"]["untrained"]
    distances = np.linalg.norm(places[:, None] - places[None], axis=2)
    cosines = Letters().encode(described["names"]) @ Letters().encode(described["names"]).T
    nearest, farthest = (cosines - 2 * np.eye(len(places))).argmax(axis=1), cosines.argmin(axis=1)
    rows = np.arange(len(places))
    assert np.median(distances[rows, farthest]) > 3 * np.median(distances[rows, nearest])


def test_every_semantic_type_has_one_group():
    kinds = [kind for kinds in GROUPS.values() for kind in kinds.split()]
    assert len(kinds) == len(set(kinds)) == 127
    assert semantic_group(("T047",)) == "Disorders"
    assert semantic_group(("HP", "T116")) == "Chemicals"
    assert semantic_group(("HP",)) == "HP"
    assert semantic_group(()) == "no type"


def test_a_chart_names_its_largest_groups_and_lumps_the_rest():
    groups = [letter for count, letter in enumerate("abcdefghij", 1) for _ in range(count)]
    chart = scatter_chart([(0.0, 1.0)] * len(groups), groups, ["<name>"] * len(groups), label="map")
    assert chart.count("<circle") == len(groups)
    assert "&lt;name&gt;" in chart
    assert [group for group in "abcdefghij" if f">{group}<" in chart] == list("defghij")
    assert ">others<" in chart
    assert chart.count('class="dot c7"') == 1 + 2 + 3


def test_the_report_shows_it(described, tmp_path):
    (tmp_path / "recipe.yaml").write_text("name: run\n")
    write_json(tmp_path / "evaluation.json", {"embedding": described})
    page = write_report(tmp_path).read_text()
    assert "Concept names, trained" in page
    assert page.index("Concept names, untrained") < page.index("Concept names, trained")  # in the file it is after
    assert "Nearest names" in page
    assert all(example["name"] in page for example in described["neighbors"])
