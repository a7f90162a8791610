"""One concept and its neighbourhood, readable."""

from typing import Any

import numpy as np

from bali_ds.errors import InputError
from bali_ds.graph.sampling import rows_of
from bali_ds.graph.store import KnowledgeGraph


def describe_concept(graph: KnowledgeGraph, cui: str) -> dict[str, Any]:
    """Return names, types, definitions and all facts of a concept.

    Args:
        graph: the graph.
        cui: an identifier, or a code with its prefix ("MESH:D003920"), which stands for its preferred concept.

    Raises:
        InputError: the graph has no such concept.
    """
    concept = int(graph.lookup([cui, *graph.code_to_cuis("", cui)[:1]])[-1])
    if concept < 0:
        raise InputError(f"{cui}: is no concept of {graph.path}; see the identifiers that its source uses")
    starts, degrees = rows_of(graph, [concept])
    neighbours, kinds = graph.entries.read(starts[0] + np.arange(degrees[0]))
    columns = (graph.entries.relations[kinds].tolist(), neighbours.tolist(), graph.entries.sources[kinds].tolist())
    facts = [
        {
            "relation": graph.relation_name(relation),
            "cui": graph.cui(target),
            "name": graph.preferred_name(target),
            "source": graph.sources[source],
        }
        for relation, target, source in zip(*columns, strict=True)
    ]
    return {
        "cui": graph.cui(concept),
        "concept": concept,
        "names": graph.names(concept),
        "semantic_types": list(graph.semantic_types(concept)),
        "definitions": graph.definitions(concept),
        "facts": facts,
    }


def readable(description: dict[str, Any], limit: int) -> str:
    """Return the description as text, at most `limit` facts of each relation."""
    types = f" [{', '.join(description['semantic_types'])}]" if description["semantic_types"] else ""
    names = description["names"] or [description["cui"]]
    lines = [f"{description['cui']}  {names[0]}{types}"]
    lines += [f"  also {name}" for name in names[1:]]
    lines += [f"  {text}" for text in description["definitions"]]
    by_relation: dict[str, list[str]] = {}
    for fact in description["facts"]:
        line = f"    {fact['cui']}  {fact['name']}  ({fact['source']})"
        by_relation.setdefault(fact["relation"], []).append(line)
    for relation, facts in by_relation.items():
        lines += [f"  {relation} ({len(facts)})", *facts[:limit]]
        if len(facts) > limit:
            lines.append(f"    ... and {len(facts) - limit} more")
    return "\n".join(lines)
