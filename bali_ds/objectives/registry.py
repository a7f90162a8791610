"""The objectives by their names in the recipe."""

from typing import TYPE_CHECKING

from bali_ds.data.batch_part import BatchPart
from bali_ds.data.settings import StreamSettings
from bali_ds.objectives.contrastive import ContrastiveAlignment
from bali_ds.objectives.dual import Dual
from bali_ds.objectives.infomax import GraphInfomaxObjective
from bali_ds.objectives.links import LinkPredictionObjective
from bali_ds.objectives.masked_tokens import GraphLanguageModel, MaskedLanguageModel
from bali_ds.objectives.objective import Objective
from bali_ds.objectives.synonym_alignment import SynonymAlignment

if TYPE_CHECKING:
    from bali_ds.config import ObjectiveConfig, Recipe

OBJECTIVES: dict[str, type[Objective]] = {
    "contrastive": ContrastiveAlignment,
    "masked_language_model": MaskedLanguageModel,
    "graph_language_model": GraphLanguageModel,
    "link_prediction": LinkPredictionObjective,
    "synonym_alignment": SynonymAlignment,
    "graph_infomax": GraphInfomaxObjective,
    "dual": Dual,
}


def active_objectives(objective: "ObjectiveConfig") -> list[Objective]:
    """Return the objectives with a weight above 0, in the order of the recipe's keys."""
    return [OBJECTIVES[name](objective) for name in objective.active]


def batch_parts(objective: "ObjectiveConfig") -> tuple[BatchPart, ...]:
    """Return what the active objectives add to every batch."""
    parts = (each.batch_part() for each in active_objectives(objective))
    return tuple(part for part in parts if part)


def stream_settings(recipe: "Recipe") -> StreamSettings:
    """Return the settings of a recipe's loader, with the batch parts of its objectives.

    Raises:
        InputError: a marker is not a token of the encoder's tokenizer.
    """
    return StreamSettings.of(recipe, batch_parts(recipe.objective))
