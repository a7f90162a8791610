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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, partial
from math import prod
from pathlib import Path
from typing import Any

import torch

from bali_ds.checkpoint.lazy_tensor import LazyTensor, PartitionedValues
from bali_ds.checkpoint.zero_schema import check_structure
from bali_ds.errors import InputError, first_line

WEIGHTS = "weights"
MOMENTS = ("exp_avg", "exp_avg_sq")


class ZeroFiles:
    """The files of a checkpoint, each opened when something in it is first read, and memory-mapped.

    A rank that resumes where it saved opens the files of rank 0, which tell the layout, and its own.

    Attributes:
        ranks: number of optimizer files, 0 at stage 0.
    """

    def __init__(self, path: Path) -> None:
        """Read the layout of a checkpoint.

        Raises:
            InputError: the first file is missing, damaged or of an unknown layout.
        """
        self._path = path
        self._sharded_models = not self._name("mp_rank_00_model_states.pt")
        if self._sharded_models and not self._name("zero_pp_rank_0_mp_rank_00_model_states.pt"):
            raise InputError(f"{path}: holds no *_model_states.pt; is it a checkpoint's directory?")
        self.model, self.optimizer = cache(self._load_model), cache(self._load_optimizer)
        self.ranks = 0
        if self._name("zero_pp_rank_0_mp_rank_00_optim_states.pt"):
            counts = self.optimizer(0)["partition_count"]
            self.ranks = max(counts) if isinstance(counts, list) else int(counts)
        elif self._sharded_models or any(path.glob("*_optim_states.pt")):
            raise InputError(f"{path}: the optimizer states of rank 0 are missing; copy the files of all hosts into it")

    def check_all(self) -> None:
        """Check that the files of all ranks are there.

        Raises:
            InputError: some are missing.
        """
        found = sum(
            self._name(f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt") is not None for rank in range(self.ranks)
        )
        if found != self.ranks:
            raise InputError(
                f"{self._path}: was saved by {self.ranks} ranks, but optimizer states of {found} are there; "
                "copy the files of all hosts into it"
            )

    def _name(self, name: str) -> str | None:
        """Return the name of a file, which begins with the precision at some stages; None if it does not exist."""
        return next((each for each in (name, f"bf16_{name}", f"fp16_{name}") if (self._path / each).is_file()), None)

    def _load_model(self, rank: int) -> dict[str, Any]:
        return self._load(
            f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" if self._sharded_models else "mp_rank_00_model_states.pt"
        )

    def _load_optimizer(self, rank: int) -> dict[str, Any]:
        state: dict[str, Any] = self._load(f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")["optimizer_state_dict"]
        return state

    def _load(self, name: str) -> dict[str, Any]:
        with _known_layout(self._path):
            return _load(self._path / (self._name(name) or name))

    @cached_property
    def stage(self) -> int:
        """The ZeRO stage, 0 where the optimizer is not sharded."""
        return int(self.optimizer(0)["zero_stage"]) if self.ranks else 0

    def tensors(self, kind: str) -> dict[str, LazyTensor]:
        """Return the weights and buffers, or one of the moments, by name."""
        model = self.model(0)
        if not self.ranks:
            tensors = _from_module(model)
        elif self.stage == 3:
            tensors = self._fully_sharded(kind)
        else:
            tensors = self._sharded(kind)
        for name, original in _aliases(model).items():
            if original in tensors:
                tensors[name] = tensors[original]
        return tensors

    def _sharded(self, kind: str) -> dict[str, LazyTensor]:
        model, first = self.model(0), self.optimizer(0)
        tensors = _from_module(model) if kind == WEIGHTS else {}
        paddings = first.get("param_alignment_paddings")
        for group, shapes in enumerate(model["param_shapes"]):
            read = self._flat("single_partition_of_fp32_groups", kind, group)
            after = paddings[group] if paddings else [0] * len(shapes)
            # all ranks have as many values as the first, save the last, whose padding is not stored
            part, start = max(1, first["single_partition_of_fp32_groups"][group].numel()), 0
            for (name, shape), padding in zip(shapes.items(), after, strict=True):
                tensors[name] = LazyTensor(name, tuple(shape), PartitionedValues(read, self.ranks, part, start=start))
                start += prod(shape) + padding
        return tensors

    def _fully_sharded(self, kind: str) -> dict[str, LazyTensor]:
        model = self.model(0)
        tensors = {}
        if kind == WEIGHTS:
            buffers = set(model["buffer_names"])
            tensors = {
                name: LazyTensor.whole(name, tensor) for name, tensor in model["module"].items() if name in buffers
            }
            for name, shape in (model.get("frozen_param_shapes") or {}).items():
                part = model["frozen_param_fragments"][name].numel()
                tensors[name] = LazyTensor(
                    name, tuple(shape), PartitionedValues(partial(self._frozen, name), self.ranks, part)
                )
        read, offset = self._flat("fp32_flat_groups", kind), 0
        for shapes in model["param_shapes"]:
            for name, shape in shapes.items():
                part = -(-prod(shape) // self.ranks)
                tensors[name] = LazyTensor(name, tuple(shape), PartitionedValues(read, self.ranks, part, offset))
                offset += part
        return tensors

    def _frozen(self, name: str, rank: int) -> list[torch.Tensor]:
        return [self.model(rank)["frozen_param_fragments"][name].reshape(-1)]

    def _flat(self, weights: str, kind: str, group: int | None = None) -> Callable[[int], list[torch.Tensor]]:
        """Return what reads a rank's flat vectors of weights or of a moment, of one group or of all."""

        def read(rank: int) -> list[torch.Tensor]:
            with _known_layout(self._path):
                optimizer = self.optimizer(rank)
                numbers = range(len(optimizer[weights])) if group is None else [group]
                if kind == WEIGHTS:
                    return [optimizer[weights][number] for number in numbers]
                base = base_state(optimizer)
                return [base[number][kind] for number in numbers]

        return read


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


def _from_module(model: Mapping[str, Any]) -> dict[str, LazyTensor]:
    return {name: LazyTensor.whole(name, tensor) for name, tensor in model["module"].items()}


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
        files = ZeroFiles(path)
        files.check_all()
        return files.tensors(WEIGHTS)


def read_state(path: Path) -> StoredState:
    """Return weights and optimizer state from the directory of one checkpoint.

    Raises:
        InputError: a file is missing, damaged or of an unknown layout.
    """
    with _known_layout(path):
        files = ZeroFiles(path)
        if files.ranks:
            read = {kind: files.tensors(kind) for kind in (WEIGHTS, *MOMENTS)}
            base = base_state(files.optimizer(0))
            scaler = vars(files.optimizer(0)["loss_scaler"])
        else:
            model = files.model(0)
            optimizer, names = model["optimizer"], model["bali_ds"]["optimised"]
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
    return {name: LazyTensor.whole(name, tensor) for name, tensor in zip(names, tensors, strict=True)}
