"""Batches as trees of arrays: what torch's pytrees and its checkpointing see of them."""

from contextlib import nullcontext
from dataclasses import dataclass, fields
from itertools import count
from types import SimpleNamespace

import numpy as np
import torch
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.checkpoint import get_device_states

from bali_ds.data.batch import Array, ArrayTree, Batch, PackedSequences, as_tensors

LEAVES = 3 * 4 + 14 + 5


@dataclass(frozen=True)
class Extra(ArrayTree[Array]):
    sequences: PackedSequences[Array]
    ids: Array


class OnDevice(torch.Tensor):
    """A tensor that says that it is on a device of its own."""

    device = SimpleNamespace(type="stand-in")

    def get_device(self):
        return int(self)


def numbered_batch() -> Batch:
    """A batch whose arrays hold their number: four in each kind of sequences, five in its one part."""
    numbers = count()

    def array():
        return np.full(1, next(numbers))

    def sequences():
        return PackedSequences(array(), array(), array(), array())

    packs = {name: sequences() for name in ("passages", "names", "neighborhoods")}
    arrays = {field.name: array() for field in fields(Batch) if field.name not in {*packs, "parts"}}
    return as_tensors(Batch(**packs, **arrays, parts={"extra": Extra(sequences(), array())}))


def test_every_tensor_moves_to_a_device_but_the_lengths_of_sequences():
    batch = numbered_batch()
    moved = batch.to("meta")
    kinds = ("passages", "names", "neighborhoods")
    packs = [(getattr(batch, kind), getattr(moved, kind)) for kind in kinds]
    packs.append((batch.parts["extra"].sequences, moved.parts["extra"].sequences))
    assert all(other.lengths is own.lengths for own, other in packs)
    leaves, _ = tree_flatten(moved)
    assert [leaf.device.type for leaf in leaves].count("meta") == LEAVES - len(packs)


def test_every_tensor_of_a_batch_is_a_leaf_of_its_pytree():
    leaves, _ = tree_flatten([numbered_batch()])
    assert sorted(int(leaf) for leaf in leaves) == list(range(LEAVES))
    doubled = tree_map(lambda tensor: 2 * tensor, numbered_batch())
    assert isinstance(doubled, Batch)
    assert doubled.parts["extra"].ids == 2 * numbered_batch().parts["extra"].ids


def test_recomputation_replays_the_random_numbers_of_every_device_of_a_batch(monkeypatch):
    module = SimpleNamespace(device=lambda _: nullcontext(), get_rng_state=lambda: "state")
    monkeypatch.setattr("torch.utils.checkpoint._get_device_module", lambda _: module)
    batch = numbered_batch().map(lambda tensor: tensor.as_subclass(OnDevice))
    devices, states = get_device_states(batch)
    assert sorted(devices) == list(range(LEAVES))
    assert states == ["state"] * LEAVES
