"""The table of the linking benchmark: weights chosen on other documents than those that they are measured on.

The held-out documents are in ten folds, and each fold is scored with the weights that were best on the other nine; the
other corpora with those that were best on all of the ten.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bali_ds.evaluation.bootstrap import LEVEL, RESAMPLES, document_sums, document_weights
from bali_ds.inference.concept_scorer import Scoring
from bali_ds.inference.scoring_grid import scoring_grid
from bench.inputs.linking_split import HELD_OUT, Mentions
from bench.linking_scores import CONTEXT, GRAPH, MEMORY, SPELLING, Material, key, unpacked

Flags = NDArray[np.bool_]
FOLDS = 10
STRATA = ("all", "exact", "not exact", "seen pair", "new pair", "unseen", "unseen, not exact", "ambiguous")

WITHOUT_MEMORY, WITH_MEMORY = "any, without memory", "any, with memory"
_BOTH = "both → names and graph views"
_HALF = "recipe, half the steps"
COMPARISONS = (
    *(((name, WITHOUT_MEMORY), ("untrained", family)) for name in ("recipe", "recipe, averaged")
      for family in ("alone → names", "in context → names")),
    *(((name, "in context → names"), ("untrained", "in context → names")) for name in ("recipe", "names and mentions")),
    *(((name, WITHOUT_MEMORY), (name, "alone → names")) for name in ("recipe", "recipe, averaged")),
    (("recipe", _BOTH), ("recipe", "both → names")),
    *(((first, family), (second, family)) for family in (WITHOUT_MEMORY, WITH_MEMORY) for first, second in (
        *(("recipe", other) for other in ("untrained", "names", "names and mentions", "recipe, averaged", _HALF)),
        *((_HALF, other) for other in (
            "half the steps, half the start", "three neighbors", "separate losses", "a sibling", "no other concepts",
            "four other concepts", "half the rate", "text and graph views alone",
        )),
        ("three neighbors", "shuffled facts"),
    )),
)  # fmt: skip
"""Pairs of variant and family of scorings whose difference the table shows."""


@dataclass(frozen=True)
class Choice:
    """The scorings of a family that have the best measure.

    The measure is the sum of the accuracies on the strata that the benchmark is about: new pairs, unseen concepts and
    ambiguous strings.

    Attributes:
        overall: on all held-out documents.
        of_folds: on the documents outside each fold.
    """

    overall: Scoring
    of_folds: list[Scoring]


Choices = dict[tuple[str, str], Choice | None]
"""What was chosen for a variant in a family of scorings; None if the variant has none."""


def strata(mentions: Mentions, material: Material) -> dict[str, Flags]:
    """Return which mentions belong to each stratum, bool [n].

    - `exact`: the string is a name of its concept, in any case; `not exact`: the others.
    - `seen pair`, `new pair`: of those not exact, the pair of string and concept is linked in training, or is not.
    - `unseen`: no training mention has the concept; `unseen, not exact`: and the string is not one of its names.
    - `ambiguous`: the names of the graph and the training mentions give the string to several concepts.
    """
    dictionary, training = material.dictionary, material.training
    named: dict[str, set[str]] = {}
    for row, name in enumerate(dictionary.names):
        named.setdefault(name.lower(), set()).update(dictionary.concepts_of(row))
    remembered: dict[str, set[str]] = {}
    for string, gold in zip(training.mentions, training.gold, strict=True):
        remembered.setdefault(string.lower(), set()).update(gold)
    seen = {cui for gold in training.gold for cui in gold}
    strings = [string.lower() for string in mentions.mentions]
    pairs = list(zip(strings, map(set, mentions.gold), strict=True))
    nothing: set[str] = set()
    exact = np.array([bool(named.get(string, nothing) & gold) for string, gold in pairs])
    linked = np.array([bool(remembered.get(string, nothing) & gold) for string, gold in pairs])
    unseen = np.array([not gold & seen for _, gold in pairs])
    several = np.array([len(named.get(string, nothing) | remembered.get(string, nothing)) > 1 for string in strings])
    return {
        "all": np.ones(len(pairs), bool), "exact": exact, "not exact": ~exact, "seen pair": ~exact & linked,
        "new pair": ~exact & ~linked, "unseen": unseen, "unseen, not exact": unseen & ~exact, "ambiguous": several,
    }  # fmt: skip


class Grid:
    """The rows of a result, by variant, on one part of the split.

    Args:
        rows: rows of the JSON.
        material: the mentions.
        part: a key of the material's parts.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], material: Material, part: str) -> None:
        mentions, self.part = material.parts[part], part
        self.strata = strata(mentions, material)
        self.documents = np.unique([text for text, _, _ in mentions.places], return_inverse=True)[1]
        self.folds = self.documents % FOLDS
        self._hits: dict[str, list[dict[str, Flags]]] = {}
        for row in sorted(rows, key=lambda row: int(row["seed"])):
            scorings = row["hits"]["scorings"]
            right = unpacked(row["hits"][part], len(scorings), len(mentions.mentions))
            self._hits.setdefault(row["variant"], []).append(dict(zip(scorings, right, strict=True)))

    @property
    def variants(self) -> list[str]:
        """The variants with rows."""
        return list(self._hits)

    def chosen(self, variant: str, family: Sequence[Scoring]) -> Choice | None:
        """Return the best scorings of a family, of equal ones the first; None if the variant has none."""
        seeds = self._hits[variant]
        scorings = [scoring for scoring in family if key(scoring) in seeds[0]]
        if not scorings:
            return None
        right = np.array([[hits[key(scoring)] for scoring in scorings] for hits in seeds]).mean(axis=0)
        outside = np.stack([self.folds != fold for fold in range(FOLDS)] + [np.ones(len(self.folds), bool)])
        measures = np.zeros((len(outside), len(scorings)))
        for stratum in ("new pair", "unseen", "ambiguous"):
            kept = outside & self.strata[stratum]
            measures += kept @ right.T / np.maximum(kept.sum(axis=1), 1)[:, None]
        *of_folds, overall = (scorings[best] for best in measures.argmax(axis=1))
        return Choice(overall, of_folds)

    def right(self, variant: str, choice: Choice) -> Flags:
        """Return which mentions the seeds of a variant have right, bool [seeds, n]."""
        scorings = choice.of_folds if self.part == HELD_OUT else [choice.overall] * FOLDS
        return np.stack([np.choose(self.folds, [hits[key(each)] for each in scorings]) for hits in self._hits[variant]])

    def spread(self, right: Flags) -> float:
        """Return the largest difference between two seeds in the accuracy of any stratum, in 0..1."""
        accuracies = np.stack([right[:, kept].mean(axis=1) for kept in self.strata.values() if kept.any()])
        return float((accuracies.max(axis=1) - accuracies.min(axis=1)).max())

    def interval(self, stratum: str, first: Flags, second: Flags | None = None, seed: int = 0) -> dict[str, float]:
        """Return the mean over seeds of an accuracy, or of a difference of two, with an interval over documents.

        The documents are resampled, and with them, where there are several, the seeds of each variant.

        Args:
            stratum: the mentions.
            first: bool [seeds, n], see `right`.
            second: what is subtracted.
            seed: of the resampling.
        """
        kept = self.strata[stratum]
        if not kept.any():  # of a small corpus
            return dict.fromkeys(("value", "low", "high"), np.nan)
        documents, random = self.documents[kept], np.random.default_rng(seed)
        value, spread, weights = 0.0, np.zeros(RESAMPLES), None
        for sign, right in ((1, first), (-1, second)):
            if right is None:
                continue
            sums, sizes = document_sums(right[:, kept].T.astype(float), documents)
            weights = document_weights(len(sizes), random) if weights is None else weights
            seeds = len(right)
            drawn = random.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES) / seeds
            value += sign * float(sums.mean(axis=1).sum() / sizes.sum())
            spread += sign * (drawn * (weights @ sums)).sum(axis=1) / np.maximum(weights @ sizes, 1)
        low, high = np.quantile(spread, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return {"value": value, "low": float(low), "high": float(high)}


def named_scorings() -> dict[str, list[Scoring]]:
    """Return the families of scorings of the table; the best of each is shown."""
    mixed = CONTEXT[1:-1]
    without = [*scoring_grid(CONTEXT, GRAPH), *scoring_grid(CONTEXT, GRAPH[:4], spelling=SPELLING)]
    return {
        "spelling alone": [Scoring(spelling=np.inf)],
        "alone → names": scoring_grid(),
        "in context → names": scoring_grid((1.0,)),
        "both → names": scoring_grid(mixed),
        "alone → names and spelling": scoring_grid(spelling=SPELLING),
        "both → names and spelling": scoring_grid(mixed, spelling=SPELLING),
        "in context → graph views": scoring_grid((1.0,), (1.0,)),
        "both → names and graph views": scoring_grid(mixed, GRAPH[1:-1]),
        "alone → names, with memory": scoring_grid(memory=MEMORY[1:]),
        "both → names, with memory": scoring_grid(mixed, memory=MEMORY[1:]),
        "both → names and graph views, with memory": scoring_grid(mixed, GRAPH[1:-1], MEMORY[1:]),
        WITHOUT_MEMORY: without,
        WITH_MEMORY: scoring_grid(CONTEXT, GRAPH, MEMORY[1:]),
    }


def described(scoring: Scoring) -> str:
    """Return a scoring in words, queries before candidates."""
    if scoring.spelling == np.inf:
        return "character n-grams"
    queries = {0.0: "alone", 1.0: "in context"}
    candidates = {0.0: "names", 1.0: "graph views"}
    context, graph = scoring.context, scoring.graph
    query = queries.get(context, f"{1 - context:g} alone, {context:g} in context")
    candidate = candidates.get(graph, f"{1 - graph:g} names, {graph:g} graph views")
    spelling = f" + {scoring.spelling:g} n-grams" if scoring.spelling else ""
    memory = "" if scoring.memory is None else f", memory with bonus {scoring.memory:g}"
    return f"{query} → {candidate}{spelling}{memory}"


def table(rows: Sequence[dict[str, Any]], material: Material) -> str:
    """Return Markdown: the figures of all variants, in per cent, with the weights that were chosen, and differences.

    `folds` is in how many folds the scoring of the row was chosen, `spread` the largest difference between two seeds in
    any stratum.
    """
    parts = [part for part in material.parts if all(part in row["hits"] for row in rows)]
    grids = {part: Grid(rows, material, part) for part in parts}
    held_out = grids[HELD_OUT]
    choices = {(variant, family): held_out.chosen(variant, scorings)
               for family, scorings in named_scorings().items() for variant in held_out.variants}  # fmt: skip
    return "\n".join(line for grid in grids.values() for line in _part_table(choices, grid))


def _part_table(choices: Choices, grid: Grid) -> list[str]:
    sizes = ", ".join(f"{name} {int(grid.strata[name].sum()):,}" for name in STRATA)
    lines = [f"{grid.part}: {grid.documents.max() + 1} documents; mentions: {sizes}"]
    for family in dict.fromkeys(family for _, family in choices):
        lines += ["", family, "", *_header("training", "seeds", "spread", "query → candidates", "folds")]
        for variant in grid.variants:
            choice = choices[variant, family]
            if choice is None:
                continue
            right = grid.right(variant, choice)
            between = f"{100 * grid.spread(right):.1f}" if len(right) > 1 else ""
            folds = choice.of_folds.count(choice.overall)
            cells = (variant, str(len(right)), between, described(choice.overall), str(folds))
            lines.append(_line(*cells, *(_interval(grid.interval(stratum, right)) for stratum in STRATA)))
    return [*lines, "", "differences, of the same mentions", "", *_differences(choices, grid), ""]


def _differences(choices: Choices, grid: Grid) -> list[str]:
    lines = _header("training", "minus")
    for first, second in COMPARISONS:
        found = choices.get(first), choices.get(second)
        if found[0] is None or found[1] is None:
            continue
        right = grid.right(first[0], found[0]), grid.right(second[0], found[1])
        intervals = (_interval(grid.interval(stratum, *right)) for stratum in STRATA)
        lines.append(_line(": ".join(first), ": ".join(second), *intervals))
    return lines


def _header(*columns: str) -> list[str]:
    return [_line(*columns, *STRATA), _line(*(["---"] * (len(columns) + len(STRATA))))]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _interval(cell: dict[str, float]) -> str:
    value, low, high = (100 * cell[name] for name in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"
