"""Errors that a rank reports to the others, and what is set before a rank starts its device."""

import os
from types import SimpleNamespace

import pytest

from bali_ds.checkpoint.asynchronous_save import AsynchronousSave
from bali_ds.errors import InputError
from bali_ds.training import process_group
from bali_ds.training.process_group import RankError, joined_ranks


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("recipe.yaml: is wrong"), "recipe.yaml: is wrong"),
        (ValueError("a\nb"), "ValueError: a (traceback in the output of that rank)"),
        (ValueError(), "ValueError (traceback in the output of that rank)"),
    ],
)
def test_any_error_becomes_one_line(error, line):
    assert RankError.of(error, 1).line == line


def test_the_error_with_the_smallest_status_is_reported_first():
    mistake, unforeseen = RankError.of(InputError("a"), 0), RankError.of(ValueError("b"), 1)
    assert min(mistake, unforeseen) == unforeseen


def test_a_save_that_fails_without_a_message_is_a_fault(tmp_path):
    save = AsynchronousSave(tmp_path / "step-00000001")
    with save.recorded_fault():
        raise OSError
    assert save.fault == "OSError"


class DeviceStartedError(Exception):
    pass


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, None),
    ],
)
def test_the_allocator_is_configured_before_the_device_starts_unless_the_user_did(monkeypatch, own, expected):
    seen = []

    def set_device(_rank):
        seen.append(os.environ.get("PYTORCH_ALLOC_CONF"))
        raise DeviceStartedError

    accelerator = SimpleNamespace(device_name=lambda: "cuda", set_device=set_device)
    monkeypatch.setattr(process_group, "get_accelerator", lambda: accelerator)
    monkeypatch.setattr(os, "environ", {**os.environ})
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        os.environ.pop(name, None)
    os.environ.update(own)
    with pytest.raises(DeviceStartedError), joined_ranks():
        pass
    assert seen == [expected]


@pytest.mark.parametrize("name", ["ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"])
@pytest.mark.parametrize(("own", "expected"), [(None, "64"), ("1024", "1024")])
def test_few_matrix_products_are_kept_on_a_cpu_unless_the_user_wants_more(monkeypatch, own, expected, name):
    seen = []

    def join(**_settings):
        seen.append(os.environ.get(name))
        raise DeviceStartedError

    monkeypatch.setattr(process_group, "get_accelerator", lambda: SimpleNamespace(
        device_name=lambda: "cpu", communication_backend_name=lambda: "gloo"
    ))  # fmt: skip
    monkeypatch.setattr(process_group.deepspeed, "init_distributed", join)
    monkeypatch.setattr(os, "environ", {**os.environ})
    os.environ.pop(name, None)
    os.environ.update({name: own} if own else {})
    with pytest.raises(DeviceStartedError), joined_ranks():
        pass
    assert seen == [expected]
