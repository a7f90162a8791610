"""Ranks of gold concepts under the scores of a `ContextLinker`."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from bali_ds.evaluation.linking import NOT_FOUND
from bali_ds.evaluation.linking_data import Queries
from bali_ds.inference.context_linker import ContextLinker


def rank_by_scores(linker: ContextLinker, queries: Queries) -> NDArray[np.int64]:
    """Return the rank of the best gold concept of each mention: int64 [n], NOT_FOUND if the dictionary lacks it.

    Of concepts with equal scores the first in the dictionary comes first.
    """
    gold = list(map(linker.dictionary.rows_of, queries.gold))
    ranks = np.full(len(gold), NOT_FOUND, np.int64)
    begin = 0
    for vectors, scores in linker.scores(queries.mentions, queries.places):
        known = [row for row, own in enumerate(gold[begin : begin + len(vectors)]) if own]
        if known:
            ranks[[begin + row for row in known]] = _ranks(scores[known], [gold[begin + row] for row in known])
        begin += len(vectors)
    return ranks


def _ranks(scores: torch.Tensor, gold: Sequence[list[int]]) -> NDArray[np.int64]:
    """Return the rank of the best of the gold concepts of each row of scores [n, C], in one wait for the device."""
    longest = max(map(len, gold))
    padded = torch.tensor([[*own, *own[:1] * (longest - len(own))] for own in gold], device=scores.device)
    of_gold = scores.gather(1, padded)
    best = of_gold.amax(1, keepdim=True)
    first = padded.masked_fill(of_gold < best, scores.shape[1]).amin(1, keepdim=True)
    earlier = torch.arange(scores.shape[1], device=scores.device) < first
    before = (scores > best) | ((scores == best) & earlier)
    return 1 + before.sum(1).cpu().numpy()
