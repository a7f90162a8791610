"""Batches as trees of arrays: what torch's pytrees and its checkpointing see of them."""

from contextlib import nullcontext
from dataclasses import dataclass, fields
from itertools import count
from types import SimpleNamespace

import numpy as np
import torch
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.checkpoint import get_device_states

from bali_ds.data.batch import Array, ArrayTree, Batch, LengthBucket, as_tensors

LEAVES = 6 + 14 + 3


@dataclass(frozen=True)
class Extra(ArrayTree[Array]):
    bucket: LengthBucket[Array]
    ids: Array


class OnDevice(torch.Tensor):
    """A tensor that says that it is on a device of its own."""

    device = SimpleNamespace(type="stand-in")

    def get_device(self):
        return int(self)


def numbered_batch() -> Batch:
    """A batch whose arrays hold their number: two in each of three buckets, three in its one part."""
    numbers = count()

    def array():
        return np.full(1, next(numbers))

    def bucket():
        return LengthBucket(array(), array())

    buckets = {"passages": (bucket(), bucket()), "names": (bucket(),), "neighborhoods": ()}
    arrays = {field.name: array() for field in fields(Batch) if field.name not in {*buckets, "parts"}}
    return as_tensors(Batch(**buckets, **arrays, parts={"extra": Extra(bucket(), array())}))


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
