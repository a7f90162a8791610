"""Reads the hand-written tables of the sample: concepts, facts, sentences."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TABLES = Path(__file__).with_name("tables")


class Concept(NamedTuple):
    """One concept with its names and other surface forms.

    Attributes:
        cui: UMLS concept identifier.
        semantic_type: TUI of the UMLS Semantic Network.
        names: its names in the graph, preferred name first.
        text_forms: surface forms that occur in passages only, always linked to the CUI.
        held_out_forms: surface forms that occur neither in the graph nor in passages.
    """

    cui: str
    semantic_type: str
    names: tuple[str, ...]
    text_forms: tuple[str, ...]
    held_out_forms: tuple[str, ...]


class Fact(NamedTuple):
    """`head` `relation` `tail`, by CUI."""

    head: str
    relation: str
    tail: str


def rows(name: str) -> Iterator[list[str]]:
    """Yield the rows of a table below its header."""
    with (TABLES / f"{name}.tsv").open(encoding="utf-8") as lines:
        next(lines)
        for line in lines:
            yield line.rstrip("\n").split("\t")


def read_concepts() -> dict[str, Concept]:
    """Return the concepts by CUI, sorted."""
    found = [Concept(cui, tui, *(split(column) for column in forms)) for cui, tui, *forms in rows("concepts")]
    return {concept.cui: concept for concept in sorted(found)}


def read_facts(concepts: dict[str, Concept]) -> list[Fact]:
    """Return the facts; the tables name concepts by preferred name."""
    cui = by_preferred_name(concepts)
    return [
        Fact(cui[head], relation, cui[tail]) for head, relation, tails in rows("facts") for tail in tails.split(";")
    ]


def by_preferred_name(concepts: dict[str, Concept]) -> dict[str, str]:
    """Return the CUI of each preferred name."""
    return {concept.names[0]: concept.cui for concept in concepts.values()}


def split(column: str) -> tuple[str, ...]:
    """Return the parts of a list in one column."""
    return tuple(part for part in column.split(";") if part)
