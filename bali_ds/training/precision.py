"""The precision of a run, compared with what the device of a rank computes in."""

import logging

import torch
from deepspeed.accelerator import get_accelerator

from bali_ds.doctor.machine import has_bf16_kernels
from bali_ds.errors import InputError

logger = logging.getLogger(__name__)


def check_precision(precision: str, device: torch.device, *, warn: bool = True) -> None:
    """Refuse a precision that DeepSpeed does not train in on a device, and warn of bf16 that the device emulates.

    Args:
        precision: the recipe's.
        device: of this rank.
        warn: whether this rank warns.

    Raises:
        InputError: DeepSpeed does not train in it there.
    """
    accelerator, name = get_accelerator(), "CPU" if device.type == "cpu" else "GPU"
    if precision == "fp16" and not accelerator.is_fp16_supported():
        raise InputError(f"precision: fp16 is not supported on this {name}; set precision to fp32 or bf16")
    if precision == "bf16" and not accelerator.is_bf16_supported():
        raise InputError(f"precision: bf16 is not supported on this {name}; set precision to fp32 or fp16")
    if precision == "bf16" and warn and not has_bf16_kernels(device.type):
        faster = "fp32" if device.type == "cpu" else "fp16"
        logger.warning(
            "precision: bf16 is emulated on this %s and many times slower than %s; set precision to %s",
            name, faster, faster,
        )  # fmt: skip
