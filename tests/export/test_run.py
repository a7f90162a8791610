"""Exported directories: what transformers loads from them is what was trained."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, BertTokenizer

from bali_ds.cli import main
from bali_ds.errors import InputError
from bali_ds.export.export_run import export_run
from bali_ds.files import read_json
from bali_ds.inference.aligned_model import load_aligned
from bali_ds.inference.encoder import load
from bali_ds.training.run_lock import RunLock
from tests.export.ranks import ALONE, CASES, aligner
from tests.export.runs import mark
from tests.forked import fork


@pytest.mark.parametrize("case", CASES + ALONE)
def test_the_exported_model_computes_what_the_live_one_computes(run_of, trained, tmp_path, case):
    report = export_run(run_of(case), tmp_path / "out", "float32")
    live = aligner(seed=6)
    weights = torch.load(trained / case / "live.pt", weights_only=True)
    live.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=False)
    live.text.head.predictions.decoder.weight = live.text.encoder.embeddings.word_embeddings.weight
    live.text.head.predictions.decoder.bias = live.text.head.predictions.bias
    live.eval()

    tokens = torch.tensor([[2, 7, 9, 30, 3]])
    encoder = AutoModel.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    with_head = AutoModelForMaskedLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    states = live.text.encoder(input_ids=tokens).last_hidden_state
    tolerance = {"atol": 5e-2, "rtol": 5e-2} if "bf16" in case else {"atol": 1e-5, "rtol": 1e-5}
    assert torch.allclose(encoder(input_ids=tokens).last_hidden_state, states, **tolerance)
    assert torch.allclose(with_head(input_ids=tokens).logits, live.text.head(states), **tolerance)

    graph = load_file(tmp_path / "out" / "graph_encoder.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in graph.items()} == {
        name: tuple(tensor.shape) for name, tensor in live.graph.named_parameters()
    }
    assert report["step"] == 2
    assert report["tensors"] == len(graph) + len(load_file(tmp_path / "out" / "model.safetensors"))


def test_half_precision_is_the_rounded_checkpoint(run_of, trained, tmp_path):
    export_run(run_of("2-fp32"), tmp_path / "out")
    live = torch.load(trained / "2-fp32" / "live.pt", weights_only=True)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.float16}
    for name, tensor in written.items():
        own = name.replace("bert.", "text.encoder.").replace("cls.", "text.head.")
        assert torch.equal(tensor, live[own].half()), name
    assert AutoModel.from_pretrained(tmp_path / "out").dtype == torch.float16


def test_the_directory_describes_itself(run_of, tmp_path):
    run = run_of("1-bf16")
    interval = {"value": 0.5, "low": 0.4, "high": 0.6}
    measured = {"all": {"n": 10, "acc@1": interval, "acc@5": interval, "mrr": interval}}
    (run / "evaluation.json").write_text(json.dumps({"linking": {"trained": measured}}))
    export_run(run, tmp_path / "out")
    described = read_json(tmp_path / "out" / "bali_ds.json")
    assert described["pooling"] == "mean_tokens"
    assert described["fingerprints"]["shards"] == "f" * 64
    assert described["recipe"]["name"] == "toy"
    assert described["num_relations"] == 3
    card = (tmp_path / "out" / "README.md").read_text()
    assert "50.0 (40.0 to 60.0)" in card
    assert "weights: contrastive 1, masked_language_model 1\n" in card
    assert "UMLS" in card
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.5
    assert "base_model" not in metadata  # the encoder was a directory
    assert AutoTokenizer.from_pretrained(tmp_path / "out").tokenize("word3 word4") == ["word3", "word4"]
    assert load(tmp_path / "out").encode(["word3", "word4 word5"]).shape == (2, 12)


def test_exported_files_name_no_folder_and_no_password(run_of, tmp_path):
    run = run_of("0-fp32")
    values = yaml.safe_load((run / "recipe.yaml").read_text())
    values["data"] = {
        "graph": f"{tmp_path}/home/me/graph",
        "shards": {"pipe:curl -u me:secret u/{name}": 1, "s3://b/d": 2},
    }
    values |= {"runs": f"{tmp_path}/runs", "text_encoder": {"path": str(run / "encoder")}}
    values["evaluation"] = {"linking": {"dictionary": f"{tmp_path}/d.txt", "queries": f"{tmp_path}/q.tsv"}}
    (run / "recipe.yaml").write_text(yaml.safe_dump(values))
    export_run(run, tmp_path / "out")
    for file in (path for path in (tmp_path / "out").rglob("*") if path.is_file()):
        for private in (str(tmp_path), "/home/me", "secret"):
            assert private.encode() not in file.read_bytes(), file
    recipe = read_json(tmp_path / "out/bali_ds.json")["recipe"]
    assert recipe["data"] == recipe["data"] | {"graph": "graph", "shards": {"command": 1, "d": 2}}
    assert recipe["evaluation"]["linking"] == {"dictionary": "d.txt", "queries": "q.tsv"}


def test_the_command_prints_nothing_but_its_report(run_of, tmp_path):
    command = [
        sys.executable,
        "-m",
        "bali_ds",
        "export",
        str(run_of("3-bf16")),
        "--out",
        str(tmp_path / "out"),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert report["dtype"] == "float16"
    assert "model.safetensors" in report["files"]


@pytest.mark.parametrize("damage", ["marker", "byte", "missing", "run"])
def test_damaged_runs_are_refused_with_one_line(run_of, tmp_path, capsys, damage):
    run = run_of("2-fp32")
    checkpoint = run / "checkpoints" / "step-00000002"
    file = next(checkpoint.glob("*rank_1*.pt"))
    if damage == "marker":
        (checkpoint / "COMPLETE.json").unlink()
    elif damage == "byte":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 255
        file.write_bytes(content)
    elif damage == "missing":
        file.unlink()
    else:
        run = tmp_path / "nothing"
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_export_into_a_run_that_a_job_uses_is_refused(run_of, tmp_path, capsys):
    run = run_of("0-fp32")

    def hold() -> None:
        with RunLock(run):
            (tmp_path / "held").touch()
            time.sleep(600)

    job = fork(hold)
    try:
        while not (tmp_path / "held").exists():
            time.sleep(0.01)
        assert main(["export", str(run), "--out", str(run / "export")]) == 2
        said = capsys.readouterr().err
        assert f"is in use by process {job} " in said
        assert said.count("\n") == 1
        assert not (run / "export").exists()
        assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 0
    finally:
        os.kill(job, signal.SIGKILL)
        os.waitpid(job, 0)
    assert main(["export", str(run), "--out", str(run / "export")]) == 0


def test_an_encoder_of_another_shape_is_refused(run_of, tmp_path):
    run = run_of("0-fp32")
    config = read_json(run / "encoder" / "config.json")
    (run / "encoder" / "config.json").write_text(json.dumps({**config, "intermediate_size": 24}))
    with pytest.raises(InputError, match=r"intermediate.dense.weight is \[20, 12\], config.json says \[24, 12\]"):
        export_run(run, tmp_path / "out")


def test_overflow_names_the_tensor(run_of, tmp_path):
    run = run_of("0-fp32")
    checkpoint = run / "checkpoints" / "step-00000002"
    file = checkpoint / "mp_rank_00_model_states.pt"
    state = torch.load(file, weights_only=True)
    state["module"]["graph.relations.weight"][0, 0] = 1e6
    torch.save(state, file)
    mark(checkpoint)
    with pytest.raises(InputError, match=r"relations.weight: 1e\+06 is too large for float16"):
        export_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_graph_encoder_loads_again(run_of, trained, tmp_path):
    run = run_of("3-bf16")
    export_run(run, tmp_path / "out", "float32")
    description = read_json(tmp_path / "out" / "bali_ds.json")
    description["recipe"]["graph_encoder"]["layers"] = 1
    (tmp_path / "out" / "bali_ds.json").write_text(json.dumps(description))
    loaded, _ = load_aligned(tmp_path / "out")
    live = torch.load(trained / "3-bf16" / "live.pt", weights_only=True)
    for name, parameter in loaded.graph.named_parameters():
        assert torch.equal(parameter.to(torch.bfloat16), live[f"graph.{name}"]), name
    description["recipe"]["graph_encoder"]["layers"] = 2
    (tmp_path / "out" / "bali_ds.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match=r"does not match the recipe at layers\.1"):
        load_aligned(tmp_path / "out")
    description["recipe"]["graph_encoder"]["layers"] = 1
    (tmp_path / "out" / "bali_ds.json").write_text(json.dumps(description | {"num_relations": 2**31 - 2}))
    with pytest.raises(InputError, match=r"does not match the recipe at relations\.weight"):  # terabytes otherwise
        load_aligned(tmp_path / "out")


def test_an_export_replaces_an_earlier_one_and_no_file_of_the_user(run_of, tmp_path, capsys):
    run, out = run_of("1-bf16"), tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    command = ["export", str(run), "--out", str(out)]
    assert main(command) == 2
    assert capsys.readouterr().err.endswith(
        "out: holds thesis.tex, which is not part of an exported model by bali-ds; "
        "name another --out, or replace everything with --overwrite\n"
    )
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]
    assert main([*command, "--overwrite"]) == 0
    files = {path.name for path in out.iterdir()}
    assert main(command) == 0
    assert {path.name for path in out.iterdir()} == files
    (out / "onnx").mkdir()
    (out / "onnx/thesis.tex").write_text("mine")
    assert main(command) == 2
    assert (out / "onnx/thesis.tex").read_text() == "mine"


def test_an_export_lists_the_files_of_a_tokenizer_that_nobody_knows(run_of, tmp_path, monkeypatch):
    saved = BertTokenizer.save_pretrained

    def save(self, out):
        saved(self, out)
        (out / "odd.vocabulary").touch()

    monkeypatch.setattr(BertTokenizer, "save_pretrained", save)
    run = run_of("1-bf16")
    for _ in range(2):
        export_run(run, tmp_path / "out")
    assert "odd.vocabulary" in read_json(tmp_path / "out/bali_ds.json")["files"]
