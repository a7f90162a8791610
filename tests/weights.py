"""Compares the checkpoints of runs."""

from pathlib import Path

import torch

from bali_ds.checkpoint.zero_reader import read_state


def same_weights(first: Path, second: Path) -> bool:
    """Return whether two checkpoints hold the same weights and moments, bit for bit."""
    before, after = read_state(first), read_state(second)
    pairs = [(before.weights, after.weights), *((before.moments[kind], after.moments[kind]) for kind in before.moments)]
    return before.moments.keys() == after.moments.keys() and all(
        one.keys() == other.keys()
        and all(torch.equal(tensor.tensor(), other[name].tensor()) for name, tensor in one.items())
        for one, other in pairs
    )
