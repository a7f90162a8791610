"""Choice of the weights of a concept's scores: those that link the mentions of a second split best."""

from dataclasses import replace

import torch

from bali_ds.evaluation.linking_data import Queries
from bali_ds.inference.concept_scorer import Scoring
from bali_ds.inference.context_linker import ContextLinker
from bali_ds.inference.scoring_grid import best_concepts, scoring_grid

CONTEXT = (0.0, 0.3, 0.5, 0.7, 1.0)
GRAPH = (0.0, 0.1, 0.2, 0.3, 0.5)
MEMORY = (None, 0.0, 0.1, 0.2)
"""None uses no memory: remembered mentions of other texts can be wrong for these."""
SPELLING = (0.0, 0.1, 0.3)


def choose_scoring(linker: ContextLinker, queries: Queries) -> tuple[Scoring, float]:
    """Return the weights with the highest Acc@1 on some mentions, and that accuracy in 0..1.

    Ties go to the first combination, which has the smaller weights and no memory. Spelling is always tried, as in
    BioSyn (Sung et al., ACL 2020), which learns its weight.

    Args:
        linker: with every part of which a weight may be chosen; its own scoring says which parts there are.
        queries: mentions with gold concepts, other ones than those that are evaluated.
    """
    parts = linker.scoring
    scorings = scoring_grid(
        context=CONTEXT if parts.context else (0.0,),
        graph=GRAPH if parts.graph else (0.0,),
        memory=MEMORY if parts.memory is not None else (None,),
        spelling=SPELLING,
    )
    gold = [set(linker.dictionary.rows_of(cuis)) for cuis in queries.gold]
    right = dict.fromkeys(scorings, 0)
    for rows, alone, context in linker.vectors(queries.mentions, queries.places):
        strings, wanted = list(queries.mentions[rows]), gold[rows]
        with torch.inference_mode():
            for scoring, best in best_concepts(linker.scorer, alone, context, strings, scorings):
                right[scoring] += sum(concept in own for concept, own in zip(best.tolist(), wanted, strict=True))
    chosen = max(scorings, key=right.__getitem__)
    return chosen, right[chosen] / max(1, len(gold))


def parts_to_choose(scoring: Scoring) -> Scoring:
    """Return a scoring under which a linker has all parts of which a weight may be chosen."""
    return replace(scoring, spelling=max(SPELLING))
