"""Files of checkpoints with sound hashes and another content than DeepSpeed writes: one line and exit status 2."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from bali_ds.checkpoint.load_state import load_state
from bali_ds.cli import main
from bali_ds.errors import InputError
from tests.damage import is_harmless
from tests.export.ranks import STEPS, Toy
from tests.export.runs import mark

CHECKPOINT = f"checkpoints/step-{STEPS:08d}"
ENORMOUS = 2**40


@dataclass(frozen=True)
class Change:
    """A value of a file, by the keys that lead to it, and what takes its place."""

    case: str
    file: str
    keys: tuple[str | int, ...]
    value: Any
    line: str


def model(case: str, *keys: str | int, value: Any, line: str) -> Change:
    return Change(case, "*_model_states.pt", keys, value, line)


def optimizer(case: str, *keys: str | int, value: Any, line: str) -> Change:
    return Change(case, "*rank_0_*_optim_states.pt", ("optimizer_state_dict", *keys), value, line)


SCALE, NAME = "log_scale_offset", "text.encoder.embeddings.word_embeddings.weight"
FLAT = "single_partition_of_fp32_groups"
CHANGES = [
    model("0-fp32", "module", value=[1], line="key module: Input should be a valid dictionary"),
    model("0-fp32", "module", SCALE, value=0.5, line=f"key module.{SCALE}: Input should be an instance of Tensor"),
    model("0-fp32", "module", SCALE, value=torch.zeros(1).to_sparse(), line="is not a dense tensor of numbers"),
    model("0-fp32", "module", SCALE, value=torch.zeros(1, dtype=torch.complex64), line="is not a dense tensor"),
    model("0-fp32", "module", SCALE, value=torch.zeros(1, device="meta"), line="is not a dense tensor of numbers"),
    model(
        "0-fp32", "module", SCALE, value=torch.zeros(1).expand(ENORMOUS),
        line=f"its shape [{ENORMOUS}] describes more bytes than are stored",
    ),
    model("0-fp32", "module", NAME, value=torch.zeros(41, 12), line="is [41, 12], config.json says [40, 12]"),
    model(
        "0-fp32", "module", "text.encoder.\x1b[2J", value=torch.zeros(1), line="bert.\\x1b[2J of the checkpoint is",
    ),
    model("0-fp32", "module", "graph.relations.weight", value=torch.zeros(()), line="relations.weight is [], which no"),
    model("0-fp32", "module", SCALE, value=torch.zeros(0), line="log_scale_offset is [0], which no model"),
    model("0-fp32", "optimizer", value="x", line="key optimizer: must be a mapping"),
    model("0-fp32", "optimizer", "state", value=[], line="key optimizer.state: Input should be a valid dictionary"),
    model("0-fp32", "optimizer", "state", 0, value={}, line="key optimizer.state.0.step: Field required"),
    model("0-fp32", "optimizer", "state", 0, "step", value=float("nan"), line="step: is not a number of steps"),
    model("0-fp32", "optimizer", "state", 0, "step", value=torch.tensor(-1.0), line="step: is not a number of steps"),
    model("2-fp32", "param_shapes", value={}, line="key param_shapes: Input should be a valid list"),
    model("2-fp32", "param_shapes", 0, NAME, value=(-1, 12), line="Input should be greater than or equal to 0"),
    model("2-fp32", "param_shapes", 0, NAME, value=(2**52, 2**52), line="config.json says [40, 12]"),
    model("2-fp32", "param_shapes", 0, NAME, value="4012", line="Input should be a valid tuple"),
    model("2-fp32", "shared_params", value={"a": 1}, line="key shared_params.a: Input should be a valid string"),
    optimizer("2-fp32", value=[], line="key optimizer_state_dict: must be a mapping"),
    optimizer("2-fp32", "partition_count", value=10**30, line="key optimizer_state_dict.partition_count"),
    optimizer("2-fp32", "partition_count", value=0, line="key optimizer_state_dict.partition_count"),
    optimizer("2-fp32", "partition_count", value=[], line="key optimizer_state_dict.partition_count"),
    optimizer("2-fp32", "zero_stage", value=7, line="zero_stage: Input should be less than or equal to 3"),
    optimizer("2-fp32", FLAT, value=None, line="has an unknown layout: TypeError"),
    optimizer("2-fp32", FLAT, 0, value=torch.zeros(480, dtype=torch.int64), line="has the dtype torch.int64, not a"),
    optimizer("2-fp32", FLAT, 0, value=torch.zeros(7), line="holds fewer values than its shape"),
    optimizer("2-fp32", "base_optimizer_state", value={"state": {0: 1}}, line="base_optimizer_state.state.0: must be"),
    optimizer("3-bf16", "partition_count", value="2", line="key optimizer_state_dict.partition_count"),
    optimizer("3-bf16", "fp32_flat_groups", value={}, line="fp32_flat_groups: Input should be a valid list"),
    model("3-bf16", "frozen_param_shapes", value={"a": (3,)}, line="has an unknown layout: KeyError 'a'"),
]  # fmt: skip


def damage(run: Path, change: Change) -> Path:
    """Change a file of a run's checkpoint, and hash it again."""
    file = sorted((run / CHECKPOINT).glob(change.file))[0]
    content = torch.load(file, weights_only=False)
    *parents, last = change.keys
    place = content
    for key in parents:
        place = place[key]
    place[last] = change.value
    torch.save(content, file)
    mark(run / CHECKPOINT)
    return file


def identified(change: Change) -> str:
    return f"{change.case}: {change.line}"


@pytest.mark.parametrize("change", CHANGES, ids=identified)
def test_another_structure_is_one_line_and_status_two(run_of, tmp_path, capsys, change):
    run = run_of(change.case)
    damage(run, change)
    status = main(["export", str(run), "--out", str(tmp_path / "out")])
    line = capsys.readouterr().err
    assert status == 2, line
    assert change.line in line
    assert is_harmless(line.removesuffix("\n"))
    assert not (tmp_path / "out").exists()


def test_missing_lora_weights_are_one_line(run_of, tmp_path, capsys):
    run, name = run_of("0-fp32"), "text.encoder.layer.base_layer.weight"
    damage(run, model("0-fp32", "module", name, value=torch.zeros(2, 2), line=""))
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["text_encoder"]["lora"] = {"rank": 2}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 2
    assert f"{name}: its LoRA weights are missing or have other shapes" in capsys.readouterr().err


def engine_of(toy: Toy) -> Any:
    """What `load_state` needs of an engine of ZeRO stage 0."""
    return SimpleNamespace(module=toy, optimizer=torch.optim.AdamW(toy.parameters()), zero_optimization_stage=lambda: 0)


def test_a_checkpoint_of_another_shape_is_not_resumed_from(trained):
    checkpoint = trained / "2-fp32" / f"step-{STEPS:08d}"
    toy = Toy()
    load_state(engine_of(toy), checkpoint)
    live = torch.load(trained / "2-fp32/live.pt", weights_only=True)
    assert all(torch.equal(parameter, live[name]) for name, parameter in toy.named_parameters())
    toy.log_scale_offset = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(InputError, match=r"log_scale_offset is \[1\], the model has \[2\]; it is the checkpoint of"):
        load_state(engine_of(toy), checkpoint)
