"""Base class of the sections of a recipe."""

from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

_LARGEST_NUMBER = 2**31 - 1


class Section(BaseModel):
    """Immutable section of a recipe; unknown keys, non-finite numbers and absurdly large ones are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="after")
    def _numbers_in_range(self) -> Self:
        for key, value in self:
            limit = 2**63 - 1 if key == "seed" else _LARGEST_NUMBER
            if isinstance(value, int | float) and abs(value) > limit:
                raise ValueError(f"{key}: must be at most {limit}")
        return self
