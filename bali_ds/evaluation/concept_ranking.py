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
    index = {cui: number for number, cui in enumerate(linker.dictionary.cuis)}
    gold = [[index[cui] for cui in cuis if cui in index] for cuis in queries.gold]
    scores = (row for _, block in linker.scores(queries.mentions, queries.places) for row in block)
    ranks = [_rank(row, own) if own else NOT_FOUND for row, own in zip(scores, gold, strict=True)]
    return np.array(ranks, np.int64)


def _rank(scores: torch.Tensor, gold: Sequence[int]) -> int:
    best = scores[list(gold)].max()
    first = min(concept for concept in gold if scores[concept] == best)
    before = int((scores > best).sum()) + int((scores[:first] == best).sum())
    return 1 + before
