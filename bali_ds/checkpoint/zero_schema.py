"""Schema of DeepSpeed's checkpoint files, which anybody may have written: what `zero_reader` relies on."""

from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from bali_ds.parsing import validated

_DTYPES = {
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
}  # fmt: skip
_MOST_RANKS = 1 << 20
_MOST_AXES = 8


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    """Refuse tensors that are not plain numbers, and those that repeat the same bytes to any size (strides of 0)."""
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_nested
    if not plain or tensor.dtype not in _DTYPES:
        raise ValueError("is not a dense tensor of numbers")
    if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
        raise ValueError(f"its shape {list(tensor.shape)} describes more bytes than are stored")
    return tensor


def _floating(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():
        raise ValueError(f"has the dtype {tensor.dtype}, not a floating-point one")
    return tensor


def _step_count(value: Any) -> int:
    """Return a number of steps, which AdamW keeps as a tensor of one value or as a number."""
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = _dense(value).item()
    if not isinstance(value, int | float) or not 0 <= value < 2**53 or value != int(value):
        raise ValueError("is not a number of steps")
    return int(value)


def _attributes(value: Any) -> dict[str, Any]:
    return dict(getattr(value, "__dict__", {}))


_Tensor = Annotated[torch.Tensor, AfterValidator(_dense)]
_Floats = Annotated[_Tensor, AfterValidator(_floating)]
_Count = Annotated[int, Field(ge=0, lt=2**53)]
_Iteration = Annotated[int, Field(ge=-1, lt=2**53)]
_Shape = Annotated[tuple[_Count, ...], Field(max_length=_MOST_AXES)]
_Shapes = dict[str, _Shape]
_Ranks = Annotated[int, Field(ge=1, le=_MOST_RANKS)]


class _Schema(BaseModel):
    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True)


class _Moments(_Schema):
    step: Annotated[Any, AfterValidator(_step_count)]
    exp_avg: _Floats
    exp_avg_sq: _Floats


class _AdamState(_Schema):
    state: dict[int, _Moments]


class _LossScale(_Schema):
    cur_scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    cur_iter: _Iteration | None = None
    last_overflow_iter: _Iteration | None = None
    cur_hysteresis: _Iteration | None = None


class _Optimizer(_LossScale):
    """The state of DeepSpeed's optimizer; which keys there are depends on the ZeRO stage."""

    state: dict[int, _Moments] | None = None
    optimizer_state_dict: _AdamState | None = None
    base_optimizer_state: _AdamState | None = None
    loss_scaler: Annotated[_LossScale | None, BeforeValidator(_attributes)] = None
    zero_stage: Annotated[int, Field(ge=1, le=3)] | None = None
    partition_count: _Ranks | Annotated[list[_Ranks], Field(min_length=1)] | None = None
    param_alignment_paddings: list[list[_Count]] | None = None
    fp32_groups: list[list[_Floats]] | None = None
    single_partition_of_fp32_groups: list[_Floats] | None = None
    fp32_flat_groups: list[_Floats] | None = None


class _Run(_Schema):
    optimised: list[str]


class _ModelStates(_Schema):
    module: dict[str, _Tensor]
    optimizer: _Optimizer | None = None
    param_shapes: list[_Shapes] | None = None
    buffer_names: list[str] = []
    shared_params: dict[str, str] | None = None
    frozen_param_shapes: _Shapes | None = None
    frozen_param_fragments: dict[str, _Tensor] | None = None
    bali_ds: _Run | None = None


class _OptimizerStates(_Schema):
    optimizer_state_dict: _Optimizer


def check_structure(file: Path, content: Any) -> None:
    """Check the content of a file of a checkpoint; its name says whether it holds model or optimizer states.

    Raises:
        InputError: something has another structure, dtype or range than DeepSpeed writes; the message names the key.
    """
    validated(_ModelStates if file.name.endswith("_model_states.pt") else _OptimizerStates, content, str(file))
