"""A rank opens the files that hold the values it asks for, and no others."""

from collections import OrderedDict

import pytest
import torch

import bali_ds.checkpoint.zero_reader as zero_reader

SHAPES = OrderedDict(matrix=torch.Size([13, 7]), vector=torch.Size([10]), last=torch.Size([3, 5]))
VALUES = torch.arange(float(sum(shape.numel() for shape in SHAPES.values())))
MOMENTS = {"exp_avg": 1000, "exp_avg_sq": 2000}


def state(stage, ranks, name, flat):
    """An optimizer file of one rank, whose moments are its weights plus a constant."""
    base = {0: {"step": torch.tensor(5.0)} | {kind: flat + more for kind, more in MOMENTS.items()}}
    return {
        "optimizer_state_dict": {
            "zero_stage": stage, "partition_count": [ranks], name: [flat], "base_optimizer_state": {"state": base},
            "loss_scaler": torch.nn.Identity(),
        }
    }  # fmt: skip


def stage_2(ranks):
    """One flat vector, cut into equal parts; the last part lacks its padding."""
    part = -(-len(VALUES) // ranks)
    return [state(2, ranks, "single_partition_of_fp32_groups", VALUES[rank * part :][:part]) for rank in range(ranks)]


def stage_3(ranks):
    """Every parameter cut by itself, its last part padded."""
    parts = [torch.nn.functional.pad(each, (0, -len(each) % ranks)).view(ranks, -1) for each in tensors().values()]
    return [state(3, ranks, "fp32_flat_groups", torch.cat([part[rank] for part in parts])) for rank in range(ranks)]


def tensors():
    flat = VALUES.split([shape.numel() for shape in SHAPES.values()])
    return dict(zip(SHAPES, flat, strict=True))


@pytest.fixture
def opened(monkeypatch):
    """The names of the files that were opened."""
    names = []
    load = zero_reader._load
    monkeypatch.setattr(zero_reader, "_load", lambda file: names.append(file.name) or load(file))
    monkeypatch.setattr(zero_reader.torch, "load", lambda file, **_: CHECKPOINT[file.name])
    return names


CHECKPOINT = {}


def write(path, stage, ranks):
    model = {"module": OrderedDict(), "buffer_names": [], "param_shapes": [SHAPES], "shared_params": {}}
    prefix = "zero_pp_rank_0_" if stage == 3 else ""
    CHECKPOINT.clear()
    CHECKPOINT[f"{prefix}mp_rank_00_model_states.pt"] = model
    for rank, content in enumerate(stage_2(ranks) if stage == 2 else stage_3(ranks)):
        CHECKPOINT[f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"] = content
    for name in CHECKPOINT:
        (path / name).touch()


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("ranks", [1, 4, 9])
def test_a_rank_reads_its_own_part_from_two_files_beside_the_model(tmp_path, opened, stage, ranks):
    write(tmp_path, stage, ranks)
    for rank in range(ranks):
        opened.clear()
        read = zero_reader.read_state(tmp_path)
        total = len(VALUES)
        for name, flat in tensors().items():
            first = int(flat[0])
            if stage == 2:
                part = -(-total // ranks)
                low, high = max(rank * part, first), min((rank + 1) * part, first + len(flat))
            else:
                part = -(-len(flat) // ranks)
                low, high = first + min(rank * part, len(flat)), first + min((rank + 1) * part, len(flat))
            expected = VALUES[low : max(low, high)]
            for values, more in [(read.weights, 0), *((read.moments[kind], MOMENTS[kind]) for kind in MOMENTS)]:
                assert torch.equal(values[name].stretch(low - first, len(expected)), expected + more)
        assert len(opened) == len(set(opened)) <= 3
        assert set(opened) >= {f"zero_pp_rank_{number}_mp_rank_00_optim_states.pt" for number in {0, rank}}


@pytest.mark.parametrize("stage", [2, 3])
def test_whole_tensors_are_put_together_from_all_files(tmp_path, opened, stage):
    write(tmp_path, stage, 5)
    read = zero_reader.read_state(tmp_path)
    assert read.steps == 5
    for name, flat in tensors().items():
        assert torch.equal(read.weights[name].tensor(), flat.view(SHAPES[name]))
    assert len(opened) == 6


def test_too_few_values_are_refused_when_they_are_read(tmp_path, opened):
    write(tmp_path, 2, 4)
    CHECKPOINT["zero_pp_rank_3_mp_rank_00_optim_states.pt"] = state(2, 4, "single_partition_of_fp32_groups", VALUES[:2])
    read = zero_reader.read_state(tmp_path)
    assert opened
    with pytest.raises(
        zero_reader.InputError, match=r"last: the checkpoint holds fewer values than its shape \[3, 5\]"
    ):
        read.weights["last"].tensor()
