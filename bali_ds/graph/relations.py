"""Relation names and their inverses: the two names of one fact, read from its head and from its tail."""

from collections.abc import Iterable, Mapping

_BARE = {"CHD": "PAR", "RN": "RB", "AQ": "QB", "SY": "SY", "SIB": "SIB", "RO": "RO", "RL": "RL", "RQ": "RQ", "RU": "RU"}
UMLS_RELATIONS = {
    "CHD": "child_of",
    "PAR": "parent_of",
    "RN": "narrower_than",
    "RB": "broader_than",
    "RO": "related_to",
    "RL": "similar_to",
    "RQ": "possibly_synonym_of",
    "RU": "related_to",
    "SY": "synonym_of",
    "SIB": "sibling_of",
    "AQ": "qualifier_of",
    "QB": "qualified_by",
}
"""Each REL of the UMLS as words between CUI2 and CUI1.

A row reads "CUI2 is REL of CUI1". The expanded forms in MRDOC ("has child relationship") are those of CUI1.
"""
_NAMED = {
    "child_of": "parent_of",
    "narrower_than": "broader_than",
    "qualifier_of": "qualified_by",
    "related_to": "related_to",
    "similar_to": "similar_to",
    "possibly_synonym_of": "possibly_synonym_of",
    "synonym_of": "synonym_of",
    "sibling_of": "sibling_of",
    "part_of": "has_part",
    "may_treat": "may_be_treated_by",
    "may_prevent": "may_be_prevented_by",
    "may_diagnose": "may_be_diagnosed_by",
    "mapped_to": "mapped_from",
    "same_as": "same_as",
    "possibly_equivalent_to": "possibly_equivalent_to",
    "sib_in_isa": "sib_in_isa",
    "sib_in_part_of": "sib_in_part_of",
}
_SECOND = (set(_BARE.values()) | set(_NAMED.values())) - set(_BARE) - set(_NAMED)
_INVERSES = {**_BARE, **_NAMED, **{inverse: name for name, inverse in (_BARE | _NAMED).items()}}


def inverse_name(relation: str) -> str:
    """Return the name of a relation read from its tail.

    Table first (REL of the UMLS and a few of its RELA), then the patterns `inverse_X`, `inverse_of_X`, `has_X`
    and `X_of`; any other name gets `inverse_` before it.
    """
    if relation in _INVERSES:
        return _INVERSES[relation]
    for prefix in ("inverse_of_", "inverse_"):
        if relation.startswith(prefix):
            return relation.removeprefix(prefix)
    if relation.startswith("has_"):
        return f"{relation.removeprefix('has_')}_of"
    if relation.endswith("_of"):
        return f"has_{relation.removesuffix('_of')}"
    return f"inverse_{relation}"


def pair_up(labels: Iterable[str], known: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the inverse of each label whose inverse is also among the labels.

    A symmetric relation is its own inverse.

    Args:
        labels: relation names that occur.
        known: inverses that the data itself documents; they take precedence over the rules of `inverse_name`.
    """
    labels = set(labels)
    pairs: dict[str, str] = {}
    for rule in (lambda label: (known or {}).get(label, ""), inverse_name):
        for label in sorted(labels):
            partner = rule(label)
            if partner in labels and label not in pairs and partner not in pairs:
                pairs[label], pairs[partner] = partner, label
    return pairs


def _is_genitive(name: str) -> bool:
    return name.endswith("_of") and name not in _NAMED


def canonical(label: str, partner: str) -> str:
    """Return which of two inverse names facts are stored under."""
    return min(
        label, partner, key=lambda name: (name.startswith("inverse_"), name in _SECOND, _is_genitive(name), name)
    )
