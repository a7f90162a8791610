"""Loading a checkpoint of any world size and ZeRO stage into an engine of any other.

DeepSpeed's own loading unpickles whatever the files hold and needs the same world size and stage. Its universal
checkpoints copy every tensor to a directory first, do not support stage 0 and give all optimizer groups the settings
of the first. Here each rank reads the values that it owns straight from the files.
"""

from collections.abc import Mapping
from pathlib import Path

import deepspeed
import torch

from bali_ds.checkpoint.lazy_tensor import LazyTensor
from bali_ds.checkpoint.zero_reader import MOMENTS, StoredState, read_state
from bali_ds.errors import InputError
from bali_ds.library_internals import (
    MasterFragment,
    base_optimizer,
    broadcast_master_weights,
    loss_scaler,
    master_fragments,
    optimized_parameters,
    parameter_shape,
)

# What changes while fp16 trains; the other attributes of a loss scaler are settings.
_SCALER_STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def optimized_names(engine: deepspeed.DeepSpeedEngine) -> list[str]:
    """Return the names of the parameters that the optimizer updates, in its order."""
    names = _parameter_names(engine)
    return [names[id(parameter)] for parameter in optimized_parameters(engine)]


def load_state(engine: deepspeed.DeepSpeedEngine, checkpoint: Path) -> None:
    """Load weights, moments, step count and loss scale of a checkpoint into an engine; every rank calls this.

    Args:
        engine: of any ZeRO stage and world size.
        checkpoint: the directory of the checkpoint's files.

    Raises:
        InputError: the checkpoint is damaged, or of another model.
    """
    state = read_state(checkpoint)
    optimizer, names = base_optimizer(engine), _parameter_names(engine)
    with torch.no_grad():
        for name, buffer in engine.module.named_buffers():
            if name in state.weights:
                _check_shape(checkpoint, name, state.weights, tuple(buffer.shape))
                buffer.copy_(state.weights[name].tensor())
        for fragment in master_fragments(engine):
            name = names[id(fragment.parameter)]
            for tensors in (state.weights, *(state.moments[kind] for kind in MOMENTS)):
                _check_shape(checkpoint, name, tensors, parameter_shape(fragment.parameter))
            _load_fragment(fragment, name, state, optimizer)
        broadcast_master_weights(engine)
    scaler = loss_scaler(engine)
    for key in _SCALER_STATE:
        if key in state.scaler and hasattr(scaler, key):
            setattr(scaler, key, state.scaler[key])


def _check_shape(checkpoint: Path, name: str, tensors: Mapping[str, LazyTensor], expected: tuple[int, ...]) -> None:
    if name not in tensors:
        raise InputError(f"{checkpoint}: does not hold {name}; it is the checkpoint of another model")
    if tensors[name].shape != expected:
        found = list(tensors[name].shape)
        raise InputError(
            f"{checkpoint}: {name} is {found}, the model has {list(expected)}; it is the checkpoint of another model"
        )


def _load_fragment(fragment: MasterFragment, name: str, state: StoredState, optimizer: torch.optim.Optimizer) -> None:
    """Read a fragment's weights and moments from the files into the optimizer."""
    own = _optimizer_state(optimizer, fragment.flat, state.steps)
    for values, tensors in [(fragment.flat, state.weights), *((own[kind], state.moments[kind]) for kind in MOMENTS)]:
        target = values.view(-1)[fragment.flat_start :][: fragment.length]
        target.copy_(tensors[name].stretch(fragment.parameter_start, fragment.length))


def _optimizer_state(optimizer: torch.optim.Optimizer, flat: torch.Tensor, steps: int) -> dict[str, torch.Tensor]:
    """Return AdamW's state of a flat tensor, made or reset where it is not at `steps`."""
    state = optimizer.state[flat]
    if not state or int(state["step"]) != steps:
        # the fused AdamW counts on the device
        device = flat.device if optimizer.defaults.get("fused") else torch.device("cpu")
        state["step"] = torch.tensor(float(steps), device=device)
        for kind in MOMENTS:
            state[kind] = torch.zeros_like(flat.detach())
    return state


def _parameter_names(engine: deepspeed.DeepSpeedEngine) -> dict[int, str]:
    return {id(parameter): name for name, parameter in engine.module.named_parameters()}
