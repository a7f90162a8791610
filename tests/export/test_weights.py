"""Safetensors files that are written piece by piece, read by the safetensors library."""

import json

import pytest
import torch
from safetensors.torch import load_file

from bali_ds.checkpoint.lazy_tensor import LazyTensor, Pieces
from bali_ds.config import LoraConfig
from bali_ds.errors import InputError
from bali_ds.export.weights import merge_lora, verify_weights, write_weights


def stored(tensor):
    return LazyTensor("a tensor", tuple(tensor.shape), Pieces((tensor.reshape(-1)[:3], tensor.reshape(-1)[3:])))


TENSORS = {
    "matrix": torch.linspace(-3, 3, 35).view(5, 7),
    "half": torch.linspace(-1, 1, 8, dtype=torch.bfloat16),
    "ids": torch.arange(11),
    "one": torch.tensor([0.1]),
}
STORED = {name: stored(tensor) for name, tensor in TENSORS.items()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_files_hold_the_cast_tensors(tmp_path, dtype):
    (file,) = write_weights(tmp_path, "model", STORED, dtype)
    read = load_file(file)
    assert set(read) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(read[name], tensor.to(dtype) if tensor.is_floating_point() else tensor)
    assert verify_weights([file], STORED, dtype) == 4


def test_large_weights_are_cut_into_files_with_an_index(tmp_path):
    files = write_weights(tmp_path, "model", STORED, torch.float32, shard_bytes=150)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(files) > 1
    assert index["metadata"]["total_size"] == sum(
        t.numel() * (4 if t.is_floating_point() else 8) for t in TENSORS.values()
    )
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name].float(), TENSORS[name].float())
    assert verify_weights(files, STORED, torch.float32) == 4


def test_overflow_and_nan_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"big: 70000 is too large for float16; export with --dtype bfloat16"):
        write_weights(tmp_path, "model", {"big": stored(torch.tensor([1.0, -70000.0]))}, torch.float16)
    with pytest.raises(InputError, match="bad: has non-finite values"):
        write_weights(tmp_path, "model", {"bad": stored(torch.tensor([1.0, float("nan")]))}, torch.float16)


def test_one_flipped_bit_is_noticed(tmp_path):
    (file,) = write_weights(tmp_path, "model", STORED, torch.float16)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="differs from the checkpoint"):
        verify_weights([file], STORED, torch.float16)


def test_low_rank_updates_are_merged_chunk_by_chunk():
    """Chunks end inside of rows."""
    draw = torch.Generator().manual_seed(0)
    weight, up, down = (torch.randn(shape, generator=draw) for shape in ((3001, 701), (3001, 4), (4, 701)))
    values = {"m.base_layer.weight": weight, "m.lora_A.default.weight": down, "m.lora_B.default.weight": up}
    tensors = {name: LazyTensor.whole(name, tensor) for name, tensor in values.items()}
    (merged,) = merge_lora(tensors, LoraConfig(rank=4, alpha=6)).values()
    chunks = list(merged.chunks())
    assert len(chunks) > 2
    expected = weight.double() + 1.5 * (up.double() @ down.double())
    torch.testing.assert_close(torch.cat(chunks).view(3001, 701), expected.float(), rtol=1e-5, atol=1e-5)
