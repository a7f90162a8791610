"""Puts a checkpoint of any world size and ZeRO stage into an engine of any other.

DeepSpeed's own loading unpickles whatever the files hold and needs the same world size and stage. Its universal
checkpoints copy every tensor to a directory first, know no stage 0 and give all optimizer groups the settings of the
first. Here each rank reads the stretches that it owns straight from the files.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch

from bali_ds.checkpoint.zero_reader import MOMENTS, read_state
from bali_ds.errors import InputError


@dataclass(frozen=True)
class _Fragment:
    """Values of a parameter that this rank's optimizer updates: `flat[start:][:length]` is `name[first:][:length]`."""

    name: str
    flat: torch.Tensor
    start: int
    first: int
    length: int


def optimized_names(engine: deepspeed.DeepSpeedEngine) -> list[str]:
    """Return the names of the parameters that the optimizer updates, in its order."""
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    optimizer = engine.optimizer
    groups = getattr(optimizer, "bit16_groups", None) or getattr(optimizer, "fp16_groups", None)
    groups = groups or [group["params"] for group in optimizer.param_groups]
    return [names[id(parameter)] for group in groups for parameter in group]


def adopt(engine: deepspeed.DeepSpeedEngine, checkpoint: Path) -> None:
    """Give the engine the weights, moments and step count of a checkpoint of whatever layout.

    Args:
        engine: of any ZeRO stage; every rank calls this.
        checkpoint: the directory of its files.

    Raises:
        InputError: the checkpoint is damaged, or of another model.
    """
    stored = read_state(checkpoint)
    adamw = getattr(engine.optimizer, "optimizer", engine.optimizer)
    with torch.no_grad():
        for name, buffer in engine.module.named_buffers():
            if name in stored.weights:
                buffer.copy_(stored.weights[name].tensor())
        for fragment in _fragments(engine):
            if fragment.name not in stored.weights or any(
                fragment.name not in stored.moments[kind] for kind in MOMENTS
            ):
                raise InputError(f"{checkpoint}: holds no {fragment.name}; it is the checkpoint of another model")
            state = _state(adamw, fragment.flat, stored.steps)
            values = {"weights": fragment.flat, **{kind: state[kind] for kind in MOMENTS}}
            for kind, tensors in {"weights": stored.weights, **stored.moments}.items():
                own = values[kind].view(-1)[fragment.start :][: fragment.length]
                own.copy_(tensors[fragment.name].stretch(fragment.first, fragment.length))
        _spread(engine)
    scaler = getattr(engine.optimizer, "loss_scaler", None) or getattr(engine.optimizer, "loss_scale_config", None)
    for key, value in stored.scaler.items():
        if hasattr(scaler, key):
            setattr(scaler, key, value)


def _state(adamw: torch.optim.Optimizer, flat: torch.Tensor, steps: int) -> dict[str, torch.Tensor]:
    state = adamw.state[flat]
    if not state or int(state["step"]) != steps:
        # the fused AdamW counts on the device
        device = flat.device if adamw.defaults.get("fused") else torch.device("cpu")
        state["step"] = torch.tensor(float(steps), device=device)
        for kind in MOMENTS:
            state[kind] = torch.zeros_like(flat.detach())
    return state


def _fragments(engine: deepspeed.DeepSpeedEngine) -> Iterator[_Fragment]:
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if stage == 3:
        yield from _of_stage_3(optimizer, names, engine)
    elif stage:
        for group, flat in zip(optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True):
            for parameter in group:
                if (mapping := parameter._hp_mapping) is not None:
                    low, high = mapping.lp_fragment_address, mapping.hp_fragment_address
                    yield _Fragment(names[id(parameter)], flat, high.start, low.start, low.numel)
    else:
        for parameter, master in _pairs(optimizer):
            yield _Fragment(names[id(parameter)], master, 0, 0, master.numel())


def _of_stage_3(optimizer: Any, names: dict[int, str], engine: deepspeed.DeepSpeedEngine) -> Iterator[_Fragment]:
    rank = torch.distributed.get_rank(engine.data_parallel_group)
    for group in optimizer.fp16_groups:
        for parameter in group:
            number, start, part = optimizer.grad_position[optimizer.get_param_id(parameter)]
            first = min(rank * part, parameter.ds_numel)
            length = min(part, parameter.ds_numel - first)
            if length:
                flat = optimizer.fp32_partitioned_groups_flat[number]
                yield _Fragment(names[id(parameter)], flat, start, first, length)


def _pairs(optimizer: Any) -> Iterator[tuple[torch.nn.Parameter, torch.Tensor]]:
    """Stage 0: each parameter and the float32 tensor that AdamW updates, which is itself unless precision is mixed."""
    groups = [group["params"] for group in optimizer.param_groups]
    trained = getattr(optimizer, "fp16_groups", groups)
    for parameters, masters in zip(trained, groups, strict=True):
        yield from zip(parameters, masters, strict=True)


def _spread(engine: deepspeed.DeepSpeedEngine) -> None:
    """Bring what the optimizer holds into the weights that the model computes with."""
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if stage in (1, 2):
        optimizer.update_lp_params()
    elif stage == 0:
        for parameter, master in _pairs(optimizer):
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
