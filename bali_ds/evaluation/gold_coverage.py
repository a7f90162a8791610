"""Which gold concepts of linking queries a dictionary lacks, by vocabulary."""

import re
from collections import Counter
from itertools import chain
from typing import Any

from bali_ds.config import Recipe
from bali_ds.errors import InputError
from bali_ds.evaluation.linking_data import Queries, read_queries
from bali_ds.inference.concept_dictionary import ConceptDictionary, read_dictionary

LEAST = 0.05
"""Fraction of mentions with a gold concept in the dictionary below which the two are of different vocabularies."""
_FORMS = {"UMLS": re.compile(r"C\d{7}"), "MESH": re.compile(r"[CD]\d{6}|[CD]\d{9}")}


def gold_coverage(dictionary: ConceptDictionary, queries: Queries) -> dict[str, Any]:
    """Return how many gold concepts are not in the dictionary.

    Returns:
        {"mentions", "mentions_without_gold", "vocabularies": {name: {"concepts", "missing"}}}: mentions in all, those
        without any gold concept in the dictionary, and of each vocabulary the distinct gold concepts and those missing.

    Raises:
        InputError: fewer than `LEAST` of the mentions have a gold concept in the dictionary.
    """
    known = set(dictionary.cuis)
    without = sum(known.isdisjoint(gold) for gold in queries.gold)
    concepts = dict.fromkeys(chain.from_iterable(queries.gold))
    all_of = Counter(map(_vocabulary, concepts))
    missing = Counter(_vocabulary(concept) for concept in concepts if concept not in known)
    mentions = len(queries.gold)
    if mentions - without < LEAST * mentions:
        counts = ", ".join(f"{name} {missing[name]:,} of {count:,}" for name, count in all_of.most_common())
        example = next((concept for concept in concepts if concept not in known), "nothing")
        raise InputError(
            f"{without:,} of {mentions:,} mentions have no gold concept in the dictionary (lacking: {counts}): "
            f"gold concepts look like {example}, those of the dictionary like {dictionary.cuis[0]}; use one of the "
            "same vocabulary"
        )
    return {
        "mentions": mentions,
        "mentions_without_gold": without,
        "vocabularies": {name: {"concepts": all_of[name], "missing": missing[name]} for name in sorted(all_of)},
    }


def check_evaluation_files(recipe: Recipe) -> None:
    """Read the files that a run evaluates with after its last step.

    Raises:
        InputError: a file cannot be read, or the dictionary lacks nearly all gold concepts.
    """
    linking = recipe.evaluation.linking
    if linking:
        try:
            gold_coverage(read_dictionary(linking.dictionary), read_queries(linking.queries))
        except InputError as error:
            raise InputError(f"evaluation.linking: {error}") from error


def _vocabulary(identifier: str) -> str:
    """Return the prefix of an identifier, else the vocabulary whose identifiers have its form, else "other"."""
    prefix, colon, _ = identifier.partition(":")
    if colon:
        return prefix
    return next((name for name, form in _FORMS.items() if form.fullmatch(identifier)), "other")
