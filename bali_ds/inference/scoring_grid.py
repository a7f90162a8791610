"""Grid search over the weights of concept scores: the best concept of each mention under many of them at once."""

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bali_ds.inference.concept_scorer import ConceptScorer, Scoring, graph_gain, mixed


def scoring_grid(
    context: Sequence[float] = (0.0,),
    graph: Sequence[float] = (0.0,),
    memory: Sequence[float | None] = (None,),
    spelling: Sequence[float] = (0.0,),
) -> list[Scoring]:
    """Return every combination of weights; those that share most come one after the other."""
    combinations = itertools.product(context, spelling, memory, graph)
    return [Scoring(share, part, bonus, weight) for share, weight, bonus, part in combinations]


def best_concepts(
    scorer: ConceptScorer, alone: Tensor, context: Tensor | None, strings: list[str], scorings: Sequence[Scoring]
) -> Iterator[tuple[Scoring, Tensor]]:
    """Yield each scoring and the best concept of each of n mentions under it, int64 [n]; of equal ones the first.

    What scorings with the same share of context have in common is computed once, and what is added to the scores of
    names once for consecutive ones.

    Args:
        scorer: with the parts that the scorings have weights of.
        alone: float32 [n, d], the mentions by themselves.
        context: float32 [n, d], the mentions in their texts; None if no scoring has a share of them.
        strings: the n mentions, for their spelling.
        scorings: the weights, such as `scoring_grid`.
    """
    spelled = scorer.by_spelling(strings) if any(scoring.spelling for scoring in scorings) else None
    for share in dict.fromkeys(scoring.context for scoring in scorings):
        here = [scoring for scoring in scorings if scoring.context == share]
        query = mixed(alone, context, share)
        similarity = scorer.similarity(query)
        views = scorer.by_graph(query) if any(scoring.graph for scoring in here) else None
        with_memory = any(scoring.memory is not None for scoring in here)
        remembered = scorer.memory_similarity(alone, context, share) if with_memory else None
        for spelling, of_spelling in itertools.groupby(here, lambda scoring: scoring.spelling):
            with_spelling = similarity
            if spelling and spelled is not None:
                with_spelling = similarity + spelling * spelled
            own = scorer.largest_of_names(with_spelling)
            for bonus, group in itertools.groupby(of_spelling, lambda scoring: scoring.memory):
                found = own
                if bonus is not None and remembered is not None:
                    found = torch.maximum(own, scorer.by_memory(remembered, bonus))
                gain = None if views is None else graph_gain(found, views)
                for scoring in group:
                    scores = found
                    if scoring.graph and gain is not None:
                        scores = found.add(gain, alpha=scoring.graph)
                    yield scoring, _best(scores)


def _best(scores: Tensor) -> Tensor:
    """Return the first largest of each row, int64 [n]; on CPUs by numpy, which is four times as fast."""
    return torch.from_numpy(scores.numpy().argmax(axis=1)) if scores.device.type == "cpu" else scores.argmax(dim=1)
