"""Scores of concepts against a plain loop over names, remembered mentions and graph views."""

import numpy as np
import pytest
import torch

from bali_ds.inference.concept_dictionary import ConceptDictionary
from bali_ds.inference.concept_scorer import ConceptScorer, Scoring
from bali_ds.inference.mention_memory import Memory, build_memory
from bali_ds.inference.scoring_grid import best_concepts, scoring_grid
from bali_ds.inference.spelling import SpellingIndex

NAMES = [("heart", ["C1"]), ("cardiac muscle", ["C1", "C2"]), ("infarct", ["C3"]), ("attack", ["C2"]), ("x", ["C4"])]

STRINGS = ["heart", "hart", "attack", "in", "q", "muscle"]


def unit(draw, *shape):
    vectors = draw.standard_normal(shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.mark.parametrize(
    "scoring",
    [
        Scoring(),
        Scoring(context=1.0),
        Scoring(context=0.3, graph=0.4),
        Scoring(context=0.5, graph=1.0),
        Scoring(context=0.7, graph=0.2, memory=0.1),
        Scoring(memory=0.0),
        Scoring(context=0.5, spelling=0.3),
    ],
)
def test_scores_equal_the_plain_loop(scoring):
    draw = np.random.default_rng(1)
    dictionary = ConceptDictionary.of(NAMES)
    names, views = unit(draw, 5, 4), unit(draw, 4, 4)
    views[3] = 0
    own, read = unit(draw, 3, 4), unit(draw, 3, 4)
    memory = Memory(["a", "b", "c"], np.array([2, 0, 2]), np.array([0.5, 1, 0.25], np.float32), own, read)
    spelling = SpellingIndex(dictionary.names)
    alone, context = unit(draw, 6, 4), unit(draw, 6, 4)
    scorer = ConceptScorer(dictionary, names, graph_views=views, memory=memory, spelling=spelling)
    _, found = scorer.scores(*map(torch.from_numpy, (alone, context)), scoring, STRINGS)
    spelled = spelling.cosines(STRINGS, scorer.device).numpy()
    share = scoring.context
    for row in range(6):
        query = (1 - share) * alone[row] + share * context[row]
        for concept, cui in enumerate(dictionary.cuis):
            named = [number for number, (_, cuis) in enumerate(NAMES) if cui in cuis]
            best = max(query @ names[each] + scoring.spelling * spelled[row, each] for each in named)
            if scoring.memory is not None:
                for each in np.flatnonzero(memory.concepts == concept):
                    near = (1 - share) * alone[row] @ own[each] + share * context[row] @ read[each]
                    best = max(best, near + scoring.memory * memory.shares[each])
            if concept != 3:
                best = (1 - scoring.graph) * best + scoring.graph * (query @ views[concept])
            assert found[row, concept].item() == pytest.approx(best, abs=1e-5)


def test_a_grid_has_the_best_concepts_of_each_scoring():
    draw = np.random.default_rng(2)
    dictionary = ConceptDictionary.of(NAMES)
    memory = Memory(["a", "b"], np.array([2, 0]), np.array([0.5, 1], np.float32), unit(draw, 2, 4), unit(draw, 2, 4))
    scorer = ConceptScorer(
        dictionary, unit(draw, 5, 4), graph_views=unit(draw, 4, 4), memory=memory,
        spelling=SpellingIndex(dictionary.names),
    )  # fmt: skip
    scorings = scoring_grid((0.0, 0.4, 1.0), (0.0, 0.5), (None, 0.0, 0.2), (0.0, 0.3))
    vectors = torch.from_numpy(unit(draw, 6, 4)), torch.from_numpy(unit(draw, 6, 4))
    found = dict(best_concepts(scorer, *vectors, STRINGS, scorings))
    assert list(found) == scorings
    assert len(found) == 36
    for scoring, best in found.items():
        assert best.tolist() == scorer.scores(*vectors, scoring, STRINGS)[1].argmax(dim=1).tolist()
    assert len({tuple(best.tolist()) for best in found.values()}) > 10


class Lookup:
    """An encoder of strings and places by a table."""

    def encode(self, texts, **_):
        return np.array([[len(text), 1] for text in texts], np.float32)

    def encode_mentions(self, places):
        return np.array([[start, end] for _, start, end in places], np.float32)


def test_memory_keeps_each_pair_once_with_its_share_and_the_mean_of_its_contexts():
    dictionary = ConceptDictionary.of(NAMES)
    mentions, gold = ["Cold", "cold", "cold", "flu", "cold"], [("C1",), ("C2",), ("C1",), ("C9",), ("C1", "C9")]
    places = [("", 1, 0), ("", 0, 1), ("", 0, 1), ("", 5, 5), ("", 1, 0)]
    memory = build_memory(Lookup(), mentions, gold, dictionary, places)
    assert list(memory.strings) == ["cold", "cold"]
    assert memory.concepts.tolist() == [0, 1]
    assert memory.shares.tolist() == [0.75, 0.25]
    np.testing.assert_allclose(memory.context, np.array([[2, 1], [0, np.sqrt(5)]]) / np.sqrt(5), rtol=1e-6)
    assert build_memory(Lookup(), mentions, gold, dictionary).context is None


def test_a_dictionary_finds_concepts_by_identifier_and_names_by_concept():
    dictionary = ConceptDictionary.of(NAMES)
    assert dictionary.rows_of(["C3", "C9", "C1"]) == [2, 0]
    assert [dictionary.names_of(concept).tolist() for concept in range(4)] == [[0, 1], [1, 3], [2], [4]]
