"""Many weights of a concept's scores at once: the best concepts of mentions under each, to choose weights by."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bali_ds.inference.concept_scorer import ConceptScorer, Scoring, graph_gain, mixed


@dataclass(frozen=True)
class ScoringGrid:
    """Values of each weight of `Scoring`; the grid has every combination."""

    context: tuple[float, ...] = (0.0,)
    graph: tuple[float, ...] = (0.0,)
    memory: tuple[float | None, ...] = (None,)
    spelling: tuple[float, ...] = (0.0,)

    def scorings(self) -> list[Scoring]:
        """Return all combinations, in the order of `best_concepts`."""
        axes = self.context, self.spelling, self.memory, self.graph
        return [
            Scoring(context, graph, memory, spelling) for context, spelling, memory, graph in itertools.product(*axes)
        ]


def best_concepts(
    scorer: ConceptScorer, alone: Tensor, context: Tensor | None, strings: list[str], grid: ScoringGrid
) -> Iterator[Tensor]:
    """Yield the best concept of each of n mentions under each scoring, int64 [n]; of equal ones the first.

    What scorings share is computed once.

    Args:
        scorer: with the parts that the grid has weights of.
        alone: float32 [n, d], the mentions by themselves.
        context: float32 [n, d], the mentions in their texts; None if the grid has no share of them.
        strings: the n mentions, for their spelling.
        grid: the weights.
    """
    spelled = scorer.by_spelling(strings) if any(grid.spelling) else None
    for share in grid.context:
        query = mixed(alone, context, share)
        similarity = scorer.similarity(query)
        views = scorer.by_graph(query) if any(grid.graph) else None
        bonuses = [bonus for bonus in grid.memory if bonus is not None]
        remembered = {bonus: scorer.by_memory(alone, context, share, bonus) for bonus in bonuses}
        for weight in grid.spelling:
            with_spelling = similarity if spelled is None or not weight else similarity + weight * spelled
            own = scorer.largest_of_names(with_spelling)
            for bonus in grid.memory:
                found = own if bonus is None else torch.maximum(own, remembered[bonus])
                gain = None if views is None else graph_gain(found, views)
                for part in grid.graph:
                    yield _best(found if gain is None or not part else torch.add(found, gain, alpha=part))


def _best(scores: Tensor) -> Tensor:
    """Return the first largest of each row, int64 [n]; on CPUs by numpy, which is four times as fast."""
    return torch.from_numpy(scores.numpy().argmax(axis=1)) if scores.device.type == "cpu" else scores.argmax(dim=1)
