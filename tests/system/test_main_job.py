"""Training as a user starts it, on the sample data set."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bali_ds.cli import main
from bali_ds.training.run_lock import RunLock
from tests.conftest import REPOSITORY, run_ranks
from tests.ports import free_port

pytestmark = pytest.mark.system

LAUNCHER = [str(Path(sys.executable).parent / "deepspeed"), "--num_accelerators", "2", "--master_port"]


def write_recipe(path: Path, recipe) -> Path:
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    return path


def losses(run: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def learning(sample, tmp_path_factory):
    """A recipe that learns enough of the sample in about a minute."""
    return sample.recipe(
        tmp_path_factory.mktemp("runs"),
        name="aligned",
        text_encoder={"path": str(sample.encoder)},
        optimizer={"text_learning_rate": 1e-3, "graph_learning_rate": 1e-3},
        batch={"passages": 64},
        steps=None,
        epochs=5,
        log_every=20,
        evaluation={
            "linking": {
                "dictionary": REPOSITORY / "shards/sample/dictionary.txt",
                "queries": REPOSITORY / "shards/sample/queries.tsv",
            }
        },
    )


def accuracy(run: Path, model: str) -> float:
    return json.loads((run / "evaluation.json").read_text())["linking"][model]["unique_not_exact"]["acc@1"]["value"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_alignment_with_the_right_graph_is_what_helps(sample, learning, tmp_path):
    config = write_recipe(tmp_path / "aligned.yaml", learning)
    run_ranks(2, REPOSITORY / "launch/train.py", "--config", config, timeout=420)
    run = learning.directory
    assert accuracy(run, "untrained") < 0.1
    assert accuracy(run, "trained") > 0.6
    assert (run / "report.html").stat().st_size > 10_000

    corpus = (REPOSITORY / "shards/sample/corpus.pubtator").read_text().splitlines()
    rows = [line.split("\t") for line in corpus]
    cuis = sorted({cui for row in rows if len(row) > 5 for cui in row[5].split("|") if cui.startswith("C")})
    other = dict(zip(cuis, random.Random(0).sample(cuis, len(cuis)), strict=True))
    for row in rows:
        if len(row) > 5:
            row[5] = "|".join(other.get(cui, cui) for cui in row[5].split("|"))
    (tmp_path / "shuffled.pubtator").write_text("\n".join("\t".join(row) for row in rows) + "\n")
    build = f"shards build --graph {sample.graph} --corpus pubtator:{tmp_path}/shuffled.pubtator "
    build += f"--tokenizer {sample.encoder} --validation 0.05 --out {tmp_path}/shuffled"
    assert main(build.split()) == 0
    data = learning.data.model_copy(update={"shards": str(tmp_path / "shuffled")})
    shuffled = learning.model_copy(update={"name": "shuffled", "data": data})
    config = write_recipe(tmp_path / "shuffled.yaml", shuffled)
    run_ranks(2, REPOSITORY / "launch/train.py", "--config", config, timeout=420)
    assert accuracy(shuffled.directory, "trained") < accuracy(run, "trained") / 3


@pytest.mark.parametrize("stage", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.timeout(600)
def test_a_resumed_run_repeats_the_uninterrupted_one_bit_for_bit(sample, tiny_encoder, tmp_path, stage):
    recipe = sample.recipe(
        tmp_path / "straight",
        text_encoder={"path": str(tiny_encoder)},
        data={"graph": sample.graph, "shards": str(sample.shards), "workers": 1},
        deepspeed=REPOSITORY / f"ds_configs/zero{stage}.json",
        steps=6,
        checkpoints={"every": 3},
    )
    config = write_recipe(tmp_path / "recipe.yaml", recipe)
    run_ranks(2, REPOSITORY / "launch/train.py", "--config", config)
    straight = recipe.directory
    again = recipe.model_copy(update={"runs": tmp_path / "again"})
    shutil.copytree(straight, again.directory)
    shutil.rmtree(again.directory / "checkpoints/step-00000006")
    (again.directory / "complete.json").unlink()
    with (again.directory / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 9, "lo')  # what a killed process leaves
    config = write_recipe(tmp_path / "again.yaml", again)
    said = run_ranks(2, REPOSITORY / "launch/train.py", "--config", config)
    assert "step 3, resumed at" in said
    assert losses(again.directory) == losses(straight)
    weights = [run / "export/model.safetensors" for run in (straight, again.directory)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert "is complete" in run_ranks(2, REPOSITORY / "launch/train.py", "--config", config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        pytest.param(
            "optimizer.warmpu=1", "optimizer.warmpu: no such key; did you mean warmup?", marks=pytest.mark.slow
        ),
        pytest.param("batch.passages=15", "batch.passages: 15 is not divisible by 2 ranks", marks=pytest.mark.slow),
        pytest.param("data.shards=nowhere", "nowhere: is not a directory of shards", marks=pytest.mark.slow),
        ("text_encoder.path={other}", "was built with tokenizer"),
    ],
)
def test_an_unusable_input_ends_the_job_with_one_line_and_status_2(sample, tmp_path, override, message):
    config = write_recipe(tmp_path / "recipe.yaml", sample.recipe(tmp_path))
    other = tmp_path / "other"
    shutil.copytree(sample.encoder, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps(settings | {"do_lower_case": False}))
    port = str(free_port())
    arguments = ["--config", str(config), override.format(other=other)]
    done = subprocess.run(
        [*LAUNCHER, port, str(REPOSITORY / "launch/train.py"), *arguments], capture_output=True, text=True, check=False
    )
    said = [line for line in done.stderr.splitlines() if line.startswith("train: ")]
    assert done.returncode == 2
    assert len(said) == 1, done.stderr
    assert message in said[0]
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_port_in_use_ends_the_job_with_one_line_and_status_2(sample, tmp_path):
    config = write_recipe(tmp_path / "recipe.yaml", sample.recipe(tmp_path))
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as taken:
        port = str(taken.getsockname()[1])
        command = [*LAUNCHER, port, str(REPOSITORY / "launch/train.py"), "--config", str(config)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if line.startswith("train: ")]
    assert done.returncode == 2
    assert len(said) == 1, done.stderr
    assert f"port {port}: is in use" in said[0]
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_run_directory_in_use_ends_the_job_with_one_line_and_status_2(sample, tmp_path, resume):
    recipe = sample.recipe(tmp_path)
    config = write_recipe(tmp_path / "recipe.yaml", recipe)
    recipe.directory.mkdir()
    (recipe.directory / "metrics.jsonl").write_text("kept")
    port = str(free_port())
    command = [*LAUNCHER, port, str(REPOSITORY / "launch/train.py"), "--config", str(config), "--resume", resume]
    with RunLock(recipe.directory):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if line.startswith("train: ")]
    assert done.returncode == 2
    assert len(said) == 1, done.stderr
    assert f"{recipe.directory}: is in use by process {os.getpid()} on host {socket.gethostname()}" in said[0]
    assert "Traceback" not in done.stdout + done.stderr
    assert [path.name for path in recipe.directory.iterdir()] == ["metrics.jsonl"]
