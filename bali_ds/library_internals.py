"""Everything that this package reads or replaces inside DeepSpeed and torch beyond their public interfaces.

A new version of DeepSpeed may move any of it. `DEEPSPEED_VERSIONS` is the range that this module was checked against
and `DEEPSPEED_NAMES` lists what it relies on; a test compares both with what is installed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch.distributed import ProcessGroup, Work

DEEPSPEED_VERSIONS = ">=0.19,<0.20"
DEEPSPEED_NAMES = {
    "deepspeed.ops": ("__compatible_ops__",),
    "deepspeed.runtime.engine.DeepSpeedEngine": ("_copy_recovery_script", "checkpoint_engine", "data_parallel_group"),
    "deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine.TorchCheckpointEngine": ("save",),
    "deepspeed.runtime.fp16.fused_optimizer.FP16_Optimizer": ("fp16_groups", "loss_scale_config"),
    "deepspeed.runtime.zero.stage_1_and_2.DeepSpeedZeroOptimizer": (
        "bit16_groups", "check_grad_overflow", "single_partition_of_fp32_groups", "update_lp_params",
    ),
    "deepspeed.runtime.zero.stage3.DeepSpeedZeroOptimizer_Stage3": (
        "checkpoint_event_epilogue", "fp16_groups", "fp16_partitioned_groups", "fp16_partitioned_groups_flat",
        "fp32_partitioned_groups_flat", "get_param_id", "grad_position", "persistent_parameters", "unflatten",
    ),
    "deepspeed.runtime.fp16.loss_scaler": ("DynamicLossScaler", "LossScaler"),
    "deepspeed.runtime.zero.config": ("ZeroStageEnum",),
    "deepspeed.utils.tensor_fragment": ("fragment_address", "tensor_fragment"),
}  # fmt: skip
"""Modules and classes, and the names that must exist in each: attributes, methods or what a method assigns to self."""
DEEPSPEED_SIGNATURES = {
    "deepspeed.runtime.engine.DeepSpeedEngine._copy_recovery_script": ["self", "save_path"],
    "deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine.TorchCheckpointEngine.save": [
        "self", "state_dict", "path",
    ],
    "deepspeed.runtime.zero.stage_1_and_2.DeepSpeedZeroOptimizer.update_lp_params": ["self"],
    "deepspeed.runtime.zero.stage3.DeepSpeedZeroOptimizer_Stage3.get_param_id": ["self", "param"],
    "deepspeed.runtime.zero.stage3.DeepSpeedZeroOptimizer_Stage3.checkpoint_event_epilogue": ["self"],
}  # fmt: skip
"""Parameters of the functions that are called or replaced."""


def disable_shared_memory_collectives() -> None:
    """Keep DeepSpeed from compiling its CPU collectives at first use, behind a lock that outlives a killed build."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def parameter_size(parameter: torch.nn.Parameter) -> int:
    """Return the number of elements of a parameter, also where ZeRO-3 keeps an empty tensor in its place."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def optimized_parameters(engine: deepspeed.DeepSpeedEngine) -> list[torch.nn.Parameter]:
    """Return the parameters that the optimizer updates, in its order."""
    optimizer = engine.optimizer
    groups = getattr(optimizer, "bit16_groups", None) or getattr(optimizer, "fp16_groups", None)
    groups = groups or [group["params"] for group in optimizer.param_groups]
    return [parameter for group in groups for parameter in group]


def base_optimizer(engine: deepspeed.DeepSpeedEngine) -> torch.optim.Optimizer:
    """Return the AdamW that DeepSpeed's optimizer wraps, or that the engine uses as it is."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def loss_scaler(engine: deepspeed.DeepSpeedEngine) -> Any:
    """Return the object that holds the state of fp16's loss scale; None in other precisions."""
    optimizer = engine.optimizer
    return getattr(optimizer, "loss_scaler", None) or getattr(optimizer, "loss_scale_config", None)


def parameter_shape(parameter: torch.nn.Parameter) -> torch.Size:
    """Return the shape of a parameter, also where ZeRO-3 keeps an empty tensor in its place."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


@dataclass(frozen=True)
class MasterFragment:
    """Values of a parameter that this rank's optimizer updates.

    `flat[flat_start:][:length]` holds `parameter.view(-1)[parameter_start:][:length]` in the optimizer's precision.
    """

    parameter: torch.nn.Parameter
    flat: torch.Tensor
    flat_start: int
    parameter_start: int
    length: int


def master_fragments(engine: deepspeed.DeepSpeedEngine) -> Iterator[MasterFragment]:
    """Yield all values that this rank's optimizer updates, at any ZeRO stage."""
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if stage == 3:
        yield from _stage_3_fragments(engine)
    elif stage:
        for group, flat in zip(optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True):
            for parameter in group:
                if (mapping := parameter._hp_mapping) is not None:
                    low, high = mapping.lp_fragment_address, mapping.hp_fragment_address
                    yield MasterFragment(parameter, flat, high.start, low.start, low.numel)
    else:
        for parameter, master in _stage_0_masters(optimizer):
            yield MasterFragment(parameter, master, 0, 0, master.numel())


def _stage_3_fragments(engine: deepspeed.DeepSpeedEngine) -> Iterator[MasterFragment]:
    optimizer, rank = engine.optimizer, torch.distributed.get_rank(engine.data_parallel_group)
    for group in optimizer.fp16_groups:
        for parameter in group:
            number, start, part = optimizer.grad_position[optimizer.get_param_id(parameter)]
            first = min(rank * part, parameter.ds_numel)
            length = min(part, parameter.ds_numel - first)
            if length:
                yield MasterFragment(parameter, optimizer.fp32_partitioned_groups_flat[number], start, first, length)


def _stage_0_masters(optimizer: Any) -> Iterator[tuple[torch.nn.Parameter, torch.Tensor]]:
    """Yield each parameter and the float32 tensor that AdamW updates: itself unless precision is mixed."""
    groups = [group["params"] for group in optimizer.param_groups]
    trained = getattr(optimizer, "fp16_groups", groups)
    for parameters, masters in zip(trained, groups, strict=True):
        yield from zip(parameters, masters, strict=True)


def broadcast_master_weights(engine: deepspeed.DeepSpeedEngine) -> None:
    """Copy the optimizer's weights into those that the model computes with; every rank calls this."""
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if stage in (1, 2):
        optimizer.update_lp_params()
    elif stage == 0:
        for parameter, master in _stage_0_masters(optimizer):
            if parameter is not master:
                parameter.copy_(master)
    else:
        groups = zip(
            optimizer.fp32_partitioned_groups_flat,
            optimizer.fp16_partitioned_groups_flat,
            optimizer.fp16_partitioned_groups,
            strict=True,
        )
        for master, flat, parts in groups:
            flat.data.copy_(master.data)
            for part, updated in zip(parts, optimizer.unflatten(flat, parts), strict=True):
                part.data = updated.data
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters)
            optimizer.checkpoint_event_epilogue()


def checkpoint_files(
    engine: deepspeed.DeepSpeedEngine, directory: Path, client_state: dict[str, Any]
) -> tuple[dict[Path, Any], Callable[[Any, str], None]]:
    """Return what this rank writes into a checkpoint, unwritten, and DeepSpeed's writer; every rank calls this.

    DeepSpeed would write first and then let the ranks meet on the device, where none may wait long for another's disk.

    Args:
        engine: of the run; nothing may change its tensors before they are written.
        directory: of the checkpoint.
        client_state: what is written beside DeepSpeed's own state.

    Returns:
        The contents of each file, and a function that writes contents to a path.
    """
    contents: dict[Path, Any] = {}

    def collect(state_dict: Any, path: str) -> None:
        contents[Path(path)] = state_dict

    # it also copies scripts that consolidate the weights, which `bali-ds export` does
    engine._copy_recovery_script = lambda _save_path: None
    writer = engine.checkpoint_engine
    write = writer.save
    writer.save = collect
    try:
        engine.save_checkpoint(str(directory.parent), tag=directory.name, client_state=client_state, save_latest=False)
    finally:
        writer.save = write
    return contents, write


@contextmanager
def gradients_checked(engine: deepspeed.DeepSpeedEngine) -> Iterator[None]:
    """Let the update skip non-finite gradients inside the block, even where the settings turn the check off.

    Only stages 1 and 2 have such a setting; the others always check.
    """
    if engine.zero_optimization_stage() not in (1, 2):
        yield
        return
    optimizer = engine.optimizer
    before, optimizer.check_grad_overflow = optimizer.check_grad_overflow, True
    try:
        yield
    finally:
        optimizer.check_grad_overflow = before


def checkpoint_classes() -> list[Any]:
    """Return the classes, beside tensors and plain Python, whose instances DeepSpeed's checkpoints contain."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]


_COLLECTIVES = ("all", "barrier", "broadcast", "end_coalescing", "gather", "recv", "reduce", "scatter", "send")


def collective_methods() -> list[tuple[type, str]]:
    """Return the methods of torch's process groups that every collective call of any library goes through."""
    called = [name for name in vars(ProcessGroup) if name.lstrip("_").startswith(_COLLECTIVES)]
    return [(ProcessGroup, name) for name in called] + [(Work, "wait")]


@contextmanager
def wrapped_collectives(wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Call every collective of this process through a wrapper inside the block.

    torch has no hook for that, and DeepSpeed's own log of collectives waits for the GPU each time.
    """
    originals = [(owner, name, vars(owner)[name]) for owner, name in collective_methods()]
    for owner, name, _ in originals:
        setattr(owner, name, wrap(getattr(owner, name)))
    try:
        yield
    finally:
        for owner, name, method in originals:
            setattr(owner, name, method)
