"""Recall of the supporting triples of a question in its retrieved context, by token budget."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bali_ds.evaluation.bootstrap import intervals
from bali_ds.evaluation.graph_questions import GraphQuestion
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.inference.context import ContextFinder, Fact, within_budget

Triple = tuple[str, str, str]


def evaluate_context(
    finders: Mapping[str, ContextFinder], questions: Sequence[GraphQuestion], budgets: Sequence[int], seed: int = 0
) -> dict[str, Any]:
    """Return the recall of supporting triples of each finder at each token budget.

    Args:
        finders: finders by name. The facts of the first one in the order of the graph are the baseline "no pruning".
        questions: one-hop questions over the finders' graph.
        budgets: token budgets for all facts together.
        seed: seed of the bootstrap.

    Returns:
        {"n": questions, "systems": {name: {budget: {"recall": {"value", "low", "high"}, "tokens": mean used}}}}
    """
    graph = next(iter(finders.values())).graph
    rows: dict[str, dict[int, list[tuple[float, int]]]] = {}
    for question in questions:
        supporting = supporting_triples(graph, question)
        for name, facts in _ranked(finders, question.text).items():
            for budget in budgets:
                chosen = within_budget(facts, budget)
                recall = len(supporting & {(fact.head, fact.relation, fact.tail) for fact in chosen}) / len(supporting)
                tokens = sum(fact.tokens for fact in chosen)
                rows.setdefault(name, {}).setdefault(budget, []).append((recall, tokens))
    systems = {
        name: {str(budget): _summary(np.array(values, np.float64), seed) for budget, values in of_budget.items()}
        for name, of_budget in rows.items()
    }
    return {"n": len(questions), "systems": systems}


def supporting_triples(graph: KnowledgeGraph, question: GraphQuestion) -> set[Triple]:
    """Return the triples that answer a one-hop question, as (head CUI, relation name, tail CUI)."""
    backwards, relation = divmod(question.relations[0], graph.num_relations)
    topic, name = graph.cui(question.topic), graph.relation_name(relation)
    others = map(graph.cui, question.answers)
    return {(other, name, topic) if backwards else (topic, name, other) for other in others}


def _ranked(finders: Mapping[str, ContextFinder], question: str) -> dict[str, list[Fact]]:
    ranked = {name: finder.facts(finder.concepts(question), question) for name, finder in finders.items()}
    first = next(iter(ranked.values()))
    unpruned = sorted(first, key=lambda fact: (fact.head, fact.relation, fact.tail))
    return {"no pruning": unpruned, **ranked}


def _summary(values: np.ndarray, seed: int) -> dict[str, Any]:
    return {"recall": intervals({"recall": values[:, 0]}, seed)["recall"], "tokens": float(values[:, 1].mean())}
