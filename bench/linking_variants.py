"""Variants of the linking benchmark: the recipe, the recipe without its parts, and baselines without text or graph."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bali_ds.config import Recipe, load_recipe

RECIPE = Path(__file__).parents[1] / "launch/recipes/medmentions.yaml"
ALONE = ("objective.contrastive.further_views=[]", "objective.contrastive.other_concepts=0")
SEPARATE = (
    *ALONE, "objective.masked_language_model.weight=0.1", "objective.synonym_alignment.weight=1",
    "objective.synonym_alignment.pairs=mentions",
)  # fmt: skip
QUARTER = ("optimizer.text_learning_rate=5.0e-5",)
NEIGHBORS = ("data.fan_out=3",)
SHUFFLED = (*NEIGHBORS, "data.graph={folder}/shuffled_graph", "data.shards={folder}/shuffled_shards")


@dataclass(frozen=True)
class Variant:
    """One training of the benchmark.

    Attributes:
        kind: "recipe", trained on passages and graph; "pairs", trained on pairs of strings alone, as SapBERT is; or
            "untrained".
        changes: to the recipe, of which "pairs" takes the learning rate.
        mentions: whether "pairs" also pairs mention strings with names; else only names of one concept.
        seeds: how many seeds it is trained with at most.
        steps: how many times the steps of the benchmark it takes.
        of: the variant whose trained weights are averaged with those at the start; None for trained weights.
        start: the share of the weights at the start in the average.
    """

    kind: str
    changes: tuple[str, ...] = ()
    mentions: bool = False
    seeds: int = 3
    steps: int = 1
    of: str | None = None
    start: float = 0.25


VARIANTS = {
    "untrained": Variant("untrained", seeds=1),
    "recipe": Variant("recipe", steps=2),
    "recipe, averaged": Variant("recipe", steps=2, of="recipe"),
    "recipe, half the steps": Variant("recipe"),
    "three neighbors": Variant("recipe", NEIGHBORS),
    "shuffled facts": Variant("recipe", SHUFFLED),
    "names and mentions": Variant("pairs", mentions=True),
    "names": Variant("pairs"),
    "separate losses": Variant("recipe", SEPARATE),
    "a sibling": Variant("recipe", ("objective.contrastive.other_concepts=1", "objective.contrastive.siblings=1")),
    "no other concepts": Variant("recipe", ("objective.contrastive.other_concepts=0",)),
    "half the rate": Variant("recipe", ("optimizer.text_learning_rate=1.0e-4",)),
    "text and graph views alone": Variant("recipe", ALONE, seeds=1),
    "names, quarter of the rate": Variant("pairs", QUARTER, seeds=1),
    "names and mentions, quarter of the rate": Variant("pairs", QUARTER, mentions=True, seeds=1),
    "four other concepts": Variant("recipe", ("objective.contrastive.other_concepts=4",), seeds=2),
    "half the steps, half the start": Variant("recipe", seeds=1, of="recipe, half the steps", start=0.5),
}
"""The most important first: a run that is cut off has these.

In twice the steps the recipe reads about as many tokens as the pairs of strings do, and as it reads with three
neighbors. A variant that changes one of its parts takes as many steps as "recipe, half the steps"."""


@dataclass(frozen=True)
class Setting:
    """What all variants share.

    Attributes:
        folder: see `bench.inputs.linking_split`.
        device: "cuda" or "cpu".
        steps: optimizer steps, of which some variants take more.
        changes: to the recipe of every variant, before its own.
    """

    folder: Path
    device: str
    steps: int
    changes: tuple[str, ...] = field(default=())

    def recipe(self, variant: Variant, seed: int) -> Recipe:
        """Return the recipe of a variant."""
        folder = self.folder
        overrides = [
            f"data.graph={folder}/graph", f"data.shards={folder}/shards", f"text_encoder.path={folder}/encoder",
            "text_encoder.fused_layers=false", f"steps={variant.steps * self.steps}", "epochs=null",
            f"seed={29 + seed}", *self.changes,
            *(change.format(folder=folder) for change in variant.changes),
        ]  # fmt: skip
        return load_recipe(RECIPE, overrides)

    def identity(self, name: str, seed: int) -> dict[str, Any]:
        """Return what a row of results is made with; its precision, which follows from the machine, is beside it."""
        variant = VARIANTS[name]
        if variant.kind == "untrained":
            return {"variant": name, "seed": seed, "steps": 0, "changes": []}
        changes = [each for each in (*self.changes, *variant.changes) if not each.startswith("precision=")]
        return {"variant": name, "seed": seed, "steps": variant.steps * self.steps, "changes": changes}
