"""Reads weights and Adam's moments out of a DeepSpeed checkpoint of any ZeRO stage and world size, one at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bali_ds.errors import InputError
from bali_ds.training.stored_tensor import StoredTensor
from bali_ds.training.zero_files import MOMENTS, WEIGHTS, ZeroFiles, base_state


@dataclass(frozen=True)
class StoredState:
    """What training goes on from.

    Attributes:
        weights: as `read_checkpoint` returns them, float32 at stage 0 too.
        moments: AdamW's two, by kind and by the parameter's name.
        steps: that the optimiser has taken.
        scaler: the state of fp16's loss scaler, by attribute.
    """

    weights: dict[str, StoredTensor]
    moments: dict[str, dict[str, StoredTensor]]
    steps: int
    scaler: dict[str, Any]


def read_checkpoint(path: Path) -> dict[str, StoredTensor]:
    """Return every weight and buffer of a checkpoint by its name in the trained module, float32 where ZeRO keeps it.

    The names of a shared parameter refer to one and the same tensor; of a shared module at stage 3 only one is known.

    Args:
        path: the directory of one checkpoint, which holds the `.pt` files.

    Raises:
        InputError: a file is missing, damaged or of an unknown layout.
    """
    with _known_layout(path):
        return ZeroFiles.of(path).tensors(WEIGHTS)


def read_state(path: Path) -> StoredState:
    """Return weights and the state of the optimiser from the directory of one checkpoint.

    Raises:
        InputError: a file is missing, damaged or of an unknown layout.
    """
    with _known_layout(path):
        files = ZeroFiles.of(path)
        if files.optimisers:
            read = {kind: files.tensors(kind) for kind in (WEIGHTS, *MOMENTS)}
            base = base_state(files.optimisers[0])
            scaler = vars(files.optimisers[0]["loss_scaler"])
        else:
            optimiser, names = files.models[0]["optimizer"], files.models[0]["bali_ds"]["optimised"]
            base = base_state(optimiser)
            read = {kind: _numbered([base[n][kind] for n in range(len(names))], names) for kind in MOMENTS}
            masters = [tensor for group in optimiser.get("fp32_groups", ()) for tensor in group]
            read[WEIGHTS] = files.tensors(WEIGHTS) | (_numbered(masters, names) if masters else {})
            scaler = {
                key: optimiser[key] for key in ("cur_scale", "cur_iter", "last_overflow_iter") if key in optimiser
            }
        moments = {kind: read[kind] for kind in MOMENTS}
        return StoredState(read[WEIGHTS], moments, int(base[0]["step"]), scaler)


@contextmanager
def _known_layout(path: Path) -> Iterator[None]:
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: is of a layout that cannot be read: {type(error).__name__} {error}") from error


def _numbered(tensors: list[torch.Tensor], names: list[str]) -> dict[str, StoredTensor]:
    return {name: StoredTensor.whole(tensor) for name, tensor in zip(names, tensors, strict=True)}
