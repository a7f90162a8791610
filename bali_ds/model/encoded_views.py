"""What one micro-batch contributes to the losses."""

from dataclasses import dataclass

import torch

Sums = dict[str, tuple[torch.Tensor, int]]
"""Of each objective that is a mean: the float32 sum of its terms in one micro-batch, and how many terms it has."""


@dataclass(frozen=True)
class EncodedViews:
    """What one micro-batch contributes to the losses; V views, T text views.

    Attributes:
        text: float32 [T, d], what the masked passage says of the concept at its mentions.
        graph: float32 [V, d], what the graph says of the concept; [0, d] where nothing asks for it.
        text_views: int64 [T], the view of each text view.
        concept_ids: int64 [V].
        synonyms: float32 [2, S, d], two names of each of S concepts.
        synonym_ids: int64 [S].
        sums: of the objectives that are means over tokens, facts, nodes or passages.
    """

    text: torch.Tensor
    graph: torch.Tensor
    text_views: torch.Tensor
    concept_ids: torch.Tensor
    synonyms: torch.Tensor
    synonym_ids: torch.Tensor
    sums: Sums

    @property
    def text_ids(self) -> torch.Tensor:
        """Int64 [T], the concept of each text view."""
        return self.concept_ids[self.text_views]

    @property
    def paired_graph(self) -> torch.Tensor:
        """The graph view of each text view, float32 [T, d], or none."""
        return self.graph[self.text_views] if len(self.graph) else self.graph
