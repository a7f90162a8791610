"""What the stream does to samples on their way into a batch."""

from dataclasses import dataclass

from bali_ds.config import Recipe
from bali_ds.errors import InputError


@dataclass(frozen=True)
class StreamSettings:
    """Settings of order, masking, neighbourhoods and padding; the defaults are those of BALI.

    Attributes:
        seed: everything random follows from it, the epoch and the sample.
        fan_out: neighbours drawn for each concept of a passage.
        token_masking: share of tokens that masked language modelling predicts.
        mention_masking: share of passages all of whose mentions are masked.
        name_masking: share of concepts whose own name is masked in the graph view.
        passage_blocks: blocks of similar length that the passages of a batch are cut into.
        name_blocks: the same for the concept names.
        window: samples shuffled among each other within a lane of a large shard set.
        split: "train" or "validation".
        bad_samples: share of samples that may be replaced, as bad, before the run stops.
    """

    seed: int = 0
    fan_out: int = 3
    token_masking: float = 0.15
    mention_masking: float = 0.15
    name_masking: float = 0.15
    passage_blocks: int = 4
    name_blocks: int = 6
    window: int = 1024
    split: str = "train"
    bad_samples: float = 0.01

    @classmethod
    def of(cls, recipe: Recipe) -> "StreamSettings":
        """Return what a recipe says about the stream."""
        return cls(
            seed=recipe.seed,
            fan_out=recipe.data.fan_out,
            token_masking=recipe.masking.tokens,
            mention_masking=recipe.masking.mentions,
            name_masking=recipe.masking.names,
        )

    def __post_init__(self) -> None:
        for name in ("token_masking", "mention_masking", "name_masking", "bad_samples"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} {getattr(self, name)}: is a share; take a number between 0 and 1")
        for name in ("passage_blocks", "name_blocks", "window"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)}: take a whole number from 1 on")
        if self.fan_out < 0:
            raise InputError(f"fan_out {self.fan_out}: take a whole number from 0 on")
