"""A precision that a device lacks is refused, and one that it emulates is named."""

import logging
import os
from pathlib import Path

import pytest
import torch
from deepspeed.accelerator import get_accelerator

import bali_ds.training.precision as precision
from bali_ds.doctor.machine import has_bf16_kernels
from bali_ds.errors import InputError

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def warnings_of(caplog, kernels, monkeypatch, *arguments, **options):
    monkeypatch.setattr(precision, "has_bf16_kernels", lambda _: kernels)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        precision.check_precision(*arguments, **options)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(("name", "other"), [("fp16", "bf16"), ("bf16", "fp16")])
def test_a_precision_that_deepspeed_does_not_train_in_is_refused(monkeypatch, name, other):
    monkeypatch.setattr(type(get_accelerator()), f"is_{name}_supported", lambda _: None)
    with pytest.raises(InputError, match=f"^precision: {name} is not supported on this CPU; .* fp32 or {other}$"):
        precision.check_precision(name, CPU)


def test_emulated_bf16_is_named_once_with_what_is_faster(caplog, monkeypatch):
    (line,) = warnings_of(caplog, False, monkeypatch, "bf16", CPU)
    assert line.endswith("emulated on this CPU and many times slower than fp32; set precision to fp32")
    (line,) = warnings_of(caplog, False, monkeypatch, "bf16", GPU)
    assert line.endswith("emulated on this GPU and many times slower than fp16; set precision to fp16")
    assert not warnings_of(caplog, False, monkeypatch, "bf16", CPU, warn=False)
    assert not warnings_of(caplog, True, monkeypatch, "bf16", CPU)
    assert not warnings_of(caplog, False, monkeypatch, "fp32", CPU)


def test_cpus_with_avx512_have_kernels():
    information = Path("/proc/cpuinfo").read_text()
    flags = set(next(line for line in information.splitlines() if line.startswith("flags")).split())
    if "ONEDNN_MAX_CPU_ISA" in os.environ or "avx_ne_convert" in flags:
        pytest.skip("oneDNN's choice of instructions is set, or this CPU converts bf16 without AVX-512")
    assert has_bf16_kernels("cpu") == ({"avx512f", "avx512bw", "avx512vl", "avx512dq"} <= flags)
