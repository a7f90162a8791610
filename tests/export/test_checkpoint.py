"""Reading DeepSpeed checkpoints: against DeepSpeed's own consolidation and against the live model."""

import shutil

import pytest
import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

from bali_ds.checkpoint.lazy_tensor import LazyTensor, Pieces
from bali_ds.checkpoint.zero_reader import read_checkpoint
from bali_ds.errors import InputError
from tests.export.ranks import ALONE, CASES, STEPS

TAG = f"step-{STEPS:08d}"


@pytest.mark.parametrize("case", CASES + ALONE)
def test_tensors_equal_the_live_model(trained, case):
    live = torch.load(trained / case / "live.pt", weights_only=True)
    stored = read_checkpoint(trained / case / TAG)
    for name, tensor in live.items():
        assert stored[name].shape == tuple(tensor.shape)
        assert torch.equal(stored[name].tensor().to(tensor.dtype), tensor), name


@pytest.mark.parametrize("case", [case for case in CASES + ALONE if not case.startswith("0")])
def test_tensors_equal_the_consolidation_of_deepspeed(trained, case):
    expected = get_fp32_state_dict_from_zero_checkpoint(str(trained / case), tag=TAG)
    stored = read_checkpoint(trained / case / TAG)
    # The graph encoder's layers share one module under two names, which DeepSpeed's own consolidation loses.
    shared = {name for name in stored if ".lin_r." in name}
    assert set(expected) == set(stored) - shared
    for name in shared:
        assert stored[name] is stored[name.replace(".lin_r.", ".lin_l.")]
    for name, tensor in expected.items():
        assert torch.equal(stored[name].tensor(), tensor), name


def test_chunks_are_the_tensor_in_order(monkeypatch):
    monkeypatch.setattr("bali_ds.checkpoint.lazy_tensor.CHUNK", 4)
    values = torch.arange(15.0)
    stored = LazyTensor("values", (3, 5), Pieces((values[:9], values[9:])))
    assert torch.equal(torch.cat(list(stored.chunks())), values)
    assert max(len(chunk) for chunk in stored.chunks()) == 4
    assert torch.equal(stored.tensor(), values.view(3, 5))


def test_a_missing_rank_is_named(trained, tmp_path):
    copy = tmp_path / TAG
    shutil.copytree(trained / "2-fp32" / TAG, copy)
    next(copy.glob("*rank_1*_optim_states.pt")).unlink()
    with pytest.raises(InputError, match="saved by 2 ranks, but optimizer states of 1"):
        read_checkpoint(copy)


@pytest.mark.parametrize("damage", ["truncate", "text", "pickle"])
def test_a_damaged_file_is_one_line(trained, tmp_path, damage):
    copy = tmp_path / TAG
    shutil.copytree(trained / "1-bf16" / TAG, copy)
    file = copy / "mp_rank_00_model_states.pt"
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif damage == "text":
        file.write_text("no checkpoint")
    else:
        torch.save({"module": InputError("a class that nobody allowed")}, file)
    with pytest.raises(InputError) as caught:
        read_checkpoint(copy)
    assert "\n" not in str(caught.value)
    assert file.name in str(caught.value)


def test_a_directory_without_checkpoint_is_refused(tmp_path):
    with pytest.raises(InputError, match="is it a checkpoint's directory"):
        read_checkpoint(tmp_path)
