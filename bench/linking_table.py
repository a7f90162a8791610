"""The table of the linking benchmark: weights chosen on one part, figures and intervals on the held-out part."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.inputs.linking_split import Mentions
from bench.linking_scores import CONTEXT, GRAPH, MEMORY, Material, unpacked

Flags = NDArray[np.bool_]
RESAMPLES, LEVEL = 1000, 0.95
STRATA = ("all", "exact", "not exact", "seen pair", "new pair", "unseen", "unseen, not exact", "ambiguous")


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
        part: "choice" or "held_out".
    """

    def __init__(self, rows: Sequence[dict[str, Any]], material: Material, part: str) -> None:
        mentions = material.parts[part]
        self.strata = strata(mentions, material)
        self.documents = np.unique([text for text, _, _ in mentions.places], return_inverse=True)[1]
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._part, self._count = part, len(mentions.mentions)
        for row in sorted(rows, key=lambda row: int(row["seed"])):
            self._rows.setdefault(row["variant"], []).append(row)

    @property
    def variants(self) -> list[str]:
        """The variants with rows."""
        return list(self._rows)

    def scorings(self, variant: str) -> list[str]:
        """Return the scorings that all rows of a variant have."""
        return list(self._rows[variant][0]["hits"])

    def right(self, variant: str, scoring: str) -> NDArray[np.float64]:
        """Return for each mention the part of the seeds that link it rightly, float64 [n] in 0..1."""
        hits = [unpacked(row["hits"][scoring][self._part], self._count) for row in self._rows[variant]]
        return np.mean(hits, axis=0)

    def seeds(self, variant: str) -> int:
        """Return how many seeds a variant has."""
        return len(self._rows[variant])

    def accuracy(self, variant: str, scoring: str, stratum: str) -> float:
        """Return the accuracy of a variant under a scoring, in 0..1."""
        return float(self.right(variant, scoring)[self.strata[stratum]].mean())

    def interval(
        self, stratum: str, first: tuple[str, str], second: tuple[str, str] | None = None, seed: int = 0
    ) -> dict[str, float]:
        """Return the mean over seeds of an accuracy, or of a difference of two, with an interval over documents.

        The documents are resampled, and with them, where there are several, the seeds of each variant.

        Args:
            stratum: the mentions.
            first: variant and scoring.
            second: what is subtracted.
            seed: of the resampling.
        """
        kept = self.strata[stratum]
        count = int(self.documents.max()) + 1
        sizes = np.bincount(self.documents[kept], minlength=count)
        random = np.random.default_rng(seed)
        weights = random.multinomial(count, np.full(count, 1 / count), RESAMPLES)
        value, spread = 0.0, np.zeros(RESAMPLES)
        for sign, pair in ((1, first), (-1, second)):
            if pair is None:
                continue
            variant, scoring = pair
            hits = np.array([unpacked(row["hits"][scoring][self._part], self._count) for row in self._rows[variant]])
            sums = np.stack([np.bincount(self.documents[kept], each[kept], count) for each in hits])
            drawn = random.multinomial(len(hits), np.full(len(hits), 1 / len(hits)), RESAMPLES) / len(hits)
            value += sign * float(sums.sum() / len(hits) / sizes.sum())
            spread += sign * (drawn * (weights @ sums.T)).sum(axis=1) / np.maximum(weights @ sizes, 1)
        low, high = np.quantile(spread, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return {"value": value, "low": float(low), "high": float(high)}


def named_scorings() -> dict[str, Callable[[str], bool]]:
    """Return the families of scorings of the table; the best of each on the choice part is shown."""

    def family(context: Sequence[float], graph: Sequence[float], memory: Sequence[float | None]) -> set[str]:
        return {_key(each, share, bonus, 0) for each in context for share in graph for bonus in memory}

    mixed = CONTEXT[1:-1]
    families = {
        "alone → names": family((0.0,), (0.0,), (None,)),
        "in context → names": family((1.0,), (0.0,), (None,)),
        "both → names": family(mixed, (0.0,), (None,)),
        "in context → graph views": family((1.0,), (1.0,), (None,)),
        "both → names and graph views": family(mixed, GRAPH[1:-1], (None,)),
        "alone → names, with memory": family((0.0,), (0.0,), MEMORY[1:]),
        "both → names and graph views, with memory": family(mixed, GRAPH[:-1], MEMORY[1:]),
    }
    return {name: keys.__contains__ for name, keys in families.items()}


def _key(context: float, graph: float, memory: float | None, spelling: float) -> str:
    from bali_ds.inference.concept_scorer import Scoring
    from bench.linking_scores import key

    return key(Scoring(context, graph, memory, spelling))


def chosen(grid: Grid, variant: str, wanted: Callable[[str], bool]) -> str | None:
    """Return the scoring of a family with the best accuracy on the choice part; None if the variant has none.

    The measure is the mean over the strata that the benchmark is about: new pairs, unseen concepts, ambiguous strings.
    """
    found = [scoring for scoring in grid.scorings(variant) if wanted(scoring)]
    return max(found, key=lambda scoring: _measure(grid, variant, scoring), default=None)


def _measure(grid: Grid, variant: str, scoring: str) -> float:
    return sum(grid.accuracy(variant, scoring, stratum) for stratum in ("new pair", "unseen", "ambiguous"))


def table(results: dict[str, Any], material: Material) -> str:
    """Return the figures of all variants, in per cent, with the weights that were chosen."""
    rows = results["rows"]
    choice, held_out = Grid(rows, material, "choice"), Grid(rows, material, "held_out")
    sizes = "  ".join(f"{name} {int(held_out.strata[name].sum()):,}" for name in STRATA)
    lines = [f"held-out mentions: {sizes}; {held_out.documents.max() + 1} documents"]
    lines.append(f"{'variant':<44}{'seeds':>6}" + "".join(f"{name:>20}" for name in STRATA))
    for family, wanted in named_scorings().items():
        lines.append(family)
        for variant in choice.variants:
            scoring = chosen(choice, variant, wanted)
            if scoring is None:
                continue
            cells = [held_out.interval(stratum, (variant, scoring)) for stratum in STRATA]
            text = "".join(f"{_interval(cell):>20}" for cell in cells)
            lines.append(f"  {variant:<42}{held_out.seeds(variant):>6}{text}  {scoring}")
    return "\n".join(lines)


def _interval(cell: dict[str, float]) -> str:
    value, low, high = (100 * cell[name] for name in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"
