import numpy as np
import pytest

from bali_ds.evaluation import retrieval
from bali_ds.evaluation.retrieval import alignment, evaluate_retrieval, recall_at_1, retrieval_ranks, uniformity


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("bytes_at_once", [1, 2**26])
def test_ranks_equal_a_plain_loop(bytes_at_once, monkeypatch):
    monkeypatch.setattr(retrieval, "SCORE_BYTES", bytes_at_once)
    draw = np.random.default_rng(0)
    queries, keys = unit(draw.normal(size=(30, 4))), unit(draw.normal(size=(50, 4)))
    key_ids = np.concatenate([np.arange(20), draw.integers(0, 20, 30)])
    query_ids = draw.integers(0, 20, 30)
    found = retrieval_ranks(queries, keys, query_ids, key_ids)
    for row in range(30):
        order = np.argsort(-(keys @ queries[row]))
        expected = next(place for place, key in enumerate(order, 1) if key_ids[key] == query_ids[row])
        # Right answers do not push each other down, wrong ones do.
        wrong = sum(key_ids[key] != query_ids[row] for key in order[: expected - 1])
        assert found[row] == 1 + wrong


def test_perfect_views_and_constant_views():
    ids = np.array([3, 1, 3, 2])
    perfect = evaluate_retrieval(np.eye(4)[ids], 2.0 * np.eye(4)[ids], ids)
    assert perfect["n"] == 4
    assert perfect["text_to_graph"]["r@1"]["value"] == perfect["graph_to_text"]["mrr"]["value"] == 1.0
    assert perfect["alignment"] == pytest.approx(0.0, abs=1e-6)
    constant = evaluate_retrieval(np.ones((4, 3)), np.ones((4, 3)), ids)
    assert constant["text_to_graph"]["r@1"]["value"] == 0.0
    assert constant["uniformity"]["text"] == pytest.approx(0.0, abs=1e-6)


def test_recall_at_1_is_that_of_the_evaluation():
    draw = np.random.default_rng(4)
    text, ids = draw.normal(size=(40, 6)), draw.integers(0, 9, 40)
    graph = text + 0.8 * draw.normal(size=(40, 6))
    assert recall_at_1(text, graph, ids) == evaluate_retrieval(text, graph, ids)["text_to_graph"]["r@1"]["value"]
    assert recall_at_1(np.ones((4, 3)), np.ones((4, 3)), np.arange(4)) == 0.0


def test_alignment_and_uniformity_by_their_formulas():
    draw = np.random.default_rng(2)
    first, second = unit(draw.normal(size=(9, 5))), unit(draw.normal(size=(9, 5)))
    distances = [np.sum((first[row] - second[row]) ** 2) for row in range(9)]
    assert alignment(first, second) == pytest.approx(np.mean(distances))
    kernel = [np.exp(-2 * np.sum((first[i] - first[j]) ** 2)) for i in range(9) for j in range(9) if i != j]
    assert uniformity(first) == pytest.approx(np.log(np.mean(kernel)), rel=1e-5)
