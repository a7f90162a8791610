"""One concept and its neighborhood as plain values, as text and as a picture."""

from pathlib import Path
from typing import Any

import numpy as np

from bali_ds.errors import InputError
from bali_ds.files import published_file
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.graph.neighbor_sampling import neighbor_ranges
from bali_ds.graph.semantic_types import named_type


def describe_concept(graph: KnowledgeGraph, cui: str) -> dict[str, Any]:
    """Return names, types, definitions and all facts of a concept.

    Args:
        graph: the graph.
        cui: an identifier, or a code with its prefix ("MESH:D003920"), which selects its preferred concept.

    Raises:
        InputError: the graph has no such concept.
    """
    concept_id = int(graph.lookup([cui, *graph.code_to_cuis("", cui)[:1]])[-1])
    if concept_id < 0:
        raise InputError(f"{cui}: is not a concept of {graph.path}; use an identifier or a code of its sources")
    adjacency = graph.adjacency
    starts, degrees = neighbor_ranges(graph, [concept_id])
    neighbors, kinds = adjacency.read(starts[0] + np.arange(degrees[0]))
    columns = (adjacency.relations[kinds].tolist(), neighbors.tolist(), adjacency.sources[kinds].tolist())
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
        "cui": graph.cui(concept_id),
        "concept": concept_id,
        "names": graph.names(concept_id),
        "semantic_types": list(graph.semantic_types(concept_id)),
        "definitions": graph.definitions(concept_id),
        "facts": facts,
    }


def readable(description: dict[str, Any], limit: int) -> str:
    """Return a description as text, at most `limit` facts of each relation."""
    named = "; ".join(map(named_type, description["semantic_types"]))
    types = f" [{named}]" if named else ""
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


_LONGEST_LABEL = 32


def draw_concept(description: dict[str, Any], target: Path, most: int = 24) -> None:
    """Write a PNG with the concept in the center and its neighbors around it, colored by relation.

    Args:
        description: what `describe_concept` returns.
        target: the .png file to publish.
        most: the largest number of neighbors to plot, taken round-robin from the relations.

    Raises:
        InputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    facts = _round_robin(description["facts"], most)
    figure = Figure(figsize=(10, 8), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axis_off()
    relations = sorted({fact["relation"] for fact in facts})
    colors = {relation: f"C{number % 10}" for number, relation in enumerate(relations)}
    labeled = set()
    for fact, angle in zip(facts, np.linspace(0, 2 * np.pi, len(facts), endpoint=False), strict=True):
        x, y = float(np.cos(angle)), float(np.sin(angle))
        relation = fact["relation"]
        label = None if relation in labeled else relation
        labeled.add(relation)
        axes.plot([0, x], [0, y], color=colors[relation], linewidth=1, zorder=1, label=label)
        axes.plot(x, y, "o", color=colors[relation], markersize=5, zorder=2)
        turned = np.degrees(angle)
        left = 90 < turned < 270
        axes.text(
            1.05 * x, 1.05 * y, _label(fact["name"]), fontsize=8, rotation=turned + (180 if left else 0),
            rotation_mode="anchor", ha="right" if left else "left", va="center",
        )  # fmt: skip
    title = description["names"][0] if description["names"] else description["cui"]
    axes.text(0, 0, _label(title), ha="center", va="center", fontsize=10, bbox={"boxstyle": "round", "fc": "white"})
    axes.set(xlim=(-2.2, 2.2), ylim=(-2, 2), aspect="equal")
    axes.set_title(f"{description['cui']}: {len(facts)} of {len(description['facts'])} facts", fontsize=10)
    if facts:
        axes.legend(loc="lower left", fontsize=8, frameon=False)
    with published_file(target) as stream:
        figure.savefig(stream, format="png", dpi=120, metadata={"Software": None})


def _round_robin(facts: list[dict[str, str]], most: int) -> list[dict[str, str]]:
    """Return at most `most` facts, taken round-robin from the relations and grouped by relation."""
    by_relation: dict[str, list[dict[str, str]]] = {}
    for fact in facts:
        by_relation.setdefault(fact["relation"], []).append(fact)
    ranked = [(turn, relation) for relation, group in by_relation.items() for turn in range(len(group))]
    taken = sorted(ranked)[:most]
    return [by_relation[relation][turn] for relation, turn in sorted((relation, turn) for turn, relation in taken)]


def _label(name: str) -> str:
    # A dollar sign would start mathematical notation.
    short = name if len(name) <= _LONGEST_LABEL else f"{name[: _LONGEST_LABEL - 1]}…"
    return short.replace("$", r"\$")
