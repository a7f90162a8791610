"""Runs that save a checkpoint, or resume from that of another run with other ranks and ZeRO stages."""

from dataclasses import dataclass

from tests.training.cases import STAGES


@dataclass(frozen=True)
class Scenario:
    """A few steps on some ranks at a ZeRO stage.

    Attributes:
        resumed: the scenario whose checkpoint this one resumes from; None starts at the first step.
        saves: whether it saves a checkpoint after its last step.
    """

    name: str
    ranks: int
    stage: int
    steps: int
    resumed: "Scenario | None" = None
    saves: bool = False

    @property
    def first_step(self) -> int:
        """Steps that were taken before."""
        return self.resumed.first_step + self.resumed.steps if self.resumed else 0


STRAIGHT = Scenario("straight", ranks=2, stage=1, steps=6)
SAVED = [Scenario(f"saved-at-stage-{stage}", ranks=2, stage=stage, steps=2, saves=True) for stage in STAGES]
TWO_TO_ONE = Scenario("stage-2-to-1-on-one-rank", ranks=1, stage=1, steps=2, resumed=SAVED[2], saves=True)
ON_ONE_RANK = [
    Scenario(f"stage-{stage}-on-one-rank", ranks=1, stage=stage, steps=1, resumed=SAVED[stage]) for stage in STAGES
]
OTHER_STAGES = [
    Scenario(f"stage-{old}-to-{new}", ranks=2, stage=new, steps=2, resumed=SAVED[old])
    for old, new in [(2, 0), (0, 1), (3, 2), (1, 3), (0, 0), (3, 3)]
]
BACK_ON_TWO_RANKS = Scenario("one-rank-at-stage-1-to-two-at-3", ranks=2, stage=3, steps=2, resumed=TWO_TO_ONE)
SCENARIOS = [*SAVED, STRAIGHT, TWO_TO_ONE, *ON_ONE_RANK, *OTHER_STAGES, BACK_ON_TWO_RANKS]
"""In an order in which each comes after the one that it resumes."""
