"""Reader of DeepSpeed checkpoints of any ZeRO stage and world size: weights and optimizer state by parameter name.

What each stage writes (DeepSpeed 0.19):

- stage 0: `mp_rank_00_model_states.pt` with all weights by name under `module`, in the dtype of training, and the
  optimizer's state of each parameter by its index; in half precision float32 weights too;
- stages 1 and 2: the same file, and for each rank `*zero_pp_rank_R_mp_rank_00_optim_states.pt` with its slice of the
  float32 weights: each optimizer group is one flat vector, its parameters in the order of `param_shapes`, cut into
  one slice per rank;
- stage 3: a file of each kind for each rank; every parameter is cut by itself into equal slices, the last one padded,
  and a rank's slices of all parameters are concatenated to one flat vector.

The moments have the layout of the float32 weights.
"""

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from bali_ds.checkpoint.lazy_tensor import LazyTensor, stretch_of
from bali_ds.checkpoint.zero_schema import check_structure
from bali_ds.errors import InputError, first_line

WEIGHTS = "weights"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class ZeroFiles:
    """The loaded files of a checkpoint, memory-mapped: model states, and ZeRO's optimizer shards above stage 0."""

    models: list[dict[str, Any]]
    optimizers: list[dict[str, Any]]

    @classmethod
    def of(cls, path: Path) -> "ZeroFiles":
        """Open the files in the directory of one checkpoint.

        Raises:
            InputError: a file is missing, damaged or of an unknown layout.
        """
        model_files = _by_rank(path, "*_model_states.pt")
        if not model_files:
            raise InputError(f"{path}: holds no *_model_states.pt; is it a checkpoint's directory?")
        models = [_load(file) for file in model_files]
        optimizers = [_load(file)["optimizer_state_dict"] for file in _by_rank(path, "*zero_pp_rank_*_optim_states.pt")]
        if optimizers:
            _check_count(path, optimizers)
        return cls(models, optimizers)

    def tensors(self, kind: str) -> dict[str, LazyTensor]:
        """Return the weights and buffers, or one of the moments, by name."""
        if not self.optimizers:
            tensors = _from_module(self.models[0])
        elif int(self.optimizers[0]["zero_stage"]) == 3:
            tensors = _fully_sharded(self.models, self.optimizers, kind)
        else:
            tensors = _sharded(self.models[0], self.optimizers, kind)
        for name, original in _aliases(self.models[0]).items():
            if original in tensors:
                tensors[name] = tensors[original]
        return tensors


def base_state(optimizer: Mapping[str, Any]) -> Mapping[int, Mapping[str, Any]]:
    """Return the state of AdamW itself, by the index of its flat vector or, at stage 0, of its parameter."""
    wrapped = optimizer.get("base_optimizer_state") or optimizer.get("optimizer_state_dict") or optimizer
    return wrapped["state"]


def _aliases(model: Mapping[str, Any]) -> dict[str, str]:
    """Return the other names of shared parameters, each with the name under which ZeRO keeps it.

    DeepSpeed lists shared parameters but misses shared modules; below stage 3 these have the same storage.
    """
    kept = {name for shapes in model.get("param_shapes") or () for name in shapes}
    places = {
        name: (tensor.data_ptr(), tuple(tensor.shape)) for name, tensor in model["module"].items() if tensor.numel()
    }
    originals: dict[tuple[int, tuple[int, ...]], str] = {}
    for name in sorted(places, key=lambda name: name not in kept):
        originals.setdefault(places[name], name)
    found = {name: originals[place] for name, place in places.items() if originals[place] != name}
    return {**found, **(model.get("shared_params") or {})}


def _by_rank(path: Path, pattern: str) -> list[Path]:
    def rank(file: Path) -> int:
        return int(file.name.partition("pp_rank_")[2].partition("_")[0] or 0)

    return sorted(Path(path).glob(pattern), key=rank)


def _load(file: Path) -> dict[str, Any]:
    # an export that finds nothing to read ends before DeepSpeed is imported
    from bali_ds.library_internals import checkpoint_classes

    try:
        with torch.serialization.safe_globals(checkpoint_classes()):
            loaded = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(f"{file}: is damaged or not a checkpoint: {first_line(error)}") from error
    if not isinstance(loaded, dict):
        raise InputError(f"{file}: is not a DeepSpeed checkpoint: it does not hold a dictionary")
    check_structure(file, loaded)
    return loaded


def _check_count(path: Path, optimizers: list[dict[str, Any]]) -> None:
    counts = optimizers[0]["partition_count"]
    expected = max(counts) if isinstance(counts, list) else int(counts)
    if len(optimizers) != expected:
        raise InputError(
            f"{path}: was saved by {expected} ranks, but optimizer states of {len(optimizers)} are there; "
            "copy the files of all hosts into it"
        )


def _from_module(model: Mapping[str, Any]) -> dict[str, LazyTensor]:
    return {name: LazyTensor.whole(tensor) for name, tensor in model["module"].items()}


def _sharded(model: Mapping[str, Any], optimizers: list[dict[str, Any]], kind: str) -> dict[str, LazyTensor]:
    tensors = _from_module(model) if kind == WEIGHTS else {}
    paddings = optimizers[0].get("param_alignment_paddings")
    for group, shapes in enumerate(model["param_shapes"]):
        stretches = [_flat(optimizer, "single_partition_of_fp32_groups", kind)[group] for optimizer in optimizers]
        after = paddings[group] if paddings else [0] * len(shapes)
        start = 0
        for (name, shape), padding in zip(shapes.items(), after, strict=True):
            tensors[name] = LazyTensor.cut(name, tuple(shape), stretches, start)
            start += prod(shape) + padding
    return tensors


def _flat(optimizer: Mapping[str, Any], weights: str, kind: str) -> list[torch.Tensor]:
    """Return one rank's flat vectors of weights or of a moment."""
    if kind == WEIGHTS:
        return optimizer[weights]
    base = base_state(optimizer)
    return [base[number][kind] for number in range(len(optimizer[weights]))]


def _fully_sharded(models: list[dict[str, Any]], optimizers: list[dict[str, Any]], kind: str) -> dict[str, LazyTensor]:
    model, ranks = models[0], len(optimizers)
    tensors = {}
    if kind == WEIGHTS:
        buffers = set(model["buffer_names"])
        tensors = {name: LazyTensor.whole(tensor) for name, tensor in model["module"].items() if name in buffers}
        for name, shape in (model.get("frozen_param_shapes") or {}).items():
            fragments = [each["frozen_param_fragments"][name].reshape(-1) for each in models]
            tensors[name] = LazyTensor.cut(name, tuple(shape), fragments)
    flat = [_flat(optimizer, "fp32_flat_groups", kind) for optimizer in optimizers]
    start = 0
    for shapes in model["param_shapes"]:
        for name, shape in shapes.items():
            part = -(-prod(shape) // ranks)
            own = [piece for groups in flat for piece in stretch_of(groups, start, part)]
            tensors[name] = LazyTensor.cut(name, tuple(shape), own)
            start += part
    return tensors


@dataclass(frozen=True)
class StoredState:
    """The state that training resumes from.

    Attributes:
        weights: as `read_checkpoint` returns them, but float32 at stage 0 too.
        moments: both moments of AdamW, by kind and parameter name.
        steps: steps that the optimizer has taken.
        scaler: state of fp16's loss scaler, by attribute.
    """

    weights: dict[str, LazyTensor]
    moments: dict[str, dict[str, LazyTensor]]
    steps: int
    scaler: dict[str, Any]


def read_checkpoint(path: Path) -> dict[str, LazyTensor]:
    """Return every weight and buffer of a checkpoint by its name in the trained module, float32 where ZeRO keeps that.

    All names of a shared parameter refer to the same tensor; of a shared module at stage 3 only one name is known.

    Args:
        path: the directory of one checkpoint, which holds the `.pt` files.

    Raises:
        InputError: a file is missing, damaged or of an unknown layout.
    """
    with _known_layout(path):
        return ZeroFiles.of(path).tensors(WEIGHTS)


def read_state(path: Path) -> StoredState:
    """Return weights and optimizer state from the directory of one checkpoint.

    Raises:
        InputError: a file is missing, damaged or of an unknown layout.
    """
    with _known_layout(path):
        files = ZeroFiles.of(path)
        if files.optimizers:
            read = {kind: files.tensors(kind) for kind in (WEIGHTS, *MOMENTS)}
            base = base_state(files.optimizers[0])
            scaler = vars(files.optimizers[0]["loss_scaler"])
        else:
            optimizer, names = files.models[0]["optimizer"], files.models[0]["bali_ds"]["optimised"]
            base = base_state(optimizer)
            read = {kind: _numbered([base[n][kind] for n in range(len(names))], names) for kind in MOMENTS}
            masters = [tensor for group in optimizer.get("fp32_groups", ()) for tensor in group]
            read[WEIGHTS] = files.tensors(WEIGHTS) | (_numbered(masters, names) if masters else {})
            scaler = {
                key: optimizer[key] for key in ("cur_scale", "cur_iter", "last_overflow_iter") if key in optimizer
            }
        moments = {kind: read[kind] for kind in MOMENTS}
        return StoredState(read[WEIGHTS], moments, int(base[0]["step"]), scaler)


@contextmanager
def _known_layout(path: Path) -> Iterator[None]:
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: has an unknown layout: {type(error).__name__} {first_line(error)}") from error


def _numbered(tensors: list[torch.Tensor], names: list[str]) -> dict[str, LazyTensor]:
    return {name: LazyTensor.whole(tensor) for name, tensor in zip(names, tensors, strict=True)}
