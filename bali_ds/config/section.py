"""Base class of the sections of a recipe."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Immutable section of a recipe; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)
