"""Damaged and remote shards under the launcher with two ranks: no rank hangs, all take the same steps, all is reported.

All but one are started by `deepspeed`. A launcher that does not end in time fails the test.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from bali_ds.checkpoint.marker import complete_checkpoints
from bali_ds.cli import main
from bali_ds.data.mixture import Mixture
from bali_ds.data.sampler import SampleOrder
from bali_ds.data.settings import StreamSettings
from bali_ds.files import sha256_file
from bali_ds.shards.layout import member_offsets
from bali_ds.shards.shard_set import ShardSet
from tests.conftest import REPOSITORY, TIMEOUT_FACTOR, run_ranks
from tests.data.test_remote import Server
from tests.ports import free_port

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]
WATCHDOG = 600 * TIMEOUT_FACTOR
STEPS, BATCH = 12, 16


@pytest.fixture(scope="module")
def many(sample, tmp_path_factory):
    """The shards of the sample in tars of 8 passages, more tars than a process keeps mapped."""
    out = tmp_path_factory.mktemp("many") / "shards"
    build = f"shards build --graph {sample.graph} --corpus pubtator:{REPOSITORY}/shards/sample/corpus.pubtator "
    build += f"--tokenizer {sample.encoder} --validation 0.05 --shard-samples 8 --out {out}"
    assert main(build.split()) == 0
    return out


@pytest.fixture
def shards(many, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(many, tmp_path / "shards"))


def recipe_of(sample, shards, tmp_path, **changes):
    data = {"graph": sample.graph, "shards": str(shards), "workers": 1}
    changes = {"steps": STEPS, "batch": {"passages": BATCH}, "validation": {"passages": 16}} | changes
    recipe = sample.recipe(tmp_path, data=data, **changes)
    config = tmp_path / "recipe.yaml"
    config.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    return recipe, config


def launch(config, ranks=2, **environment):
    deepspeed = [str(Path(sys.executable).parent / "deepspeed"), "--num_accelerators", str(ranks)]
    port = str(free_port())
    return subprocess.Popen(
        [*deepspeed, "--master_port", port, str(REPOSITORY / "launch/train.py"), "--config", str(config)],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(launcher):
    """The status of a run, and the lines that it ended with."""
    try:
        out, err = launcher.communicate(timeout=WATCHDOG)
    except subprocess.TimeoutExpired:
        launcher.kill()
        raise
    assert "Traceback" not in out + err, out + err
    return launcher.returncode, [line for line in err.splitlines() if line.startswith("train: ")], out + err


def steps_of(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "loss" in line]


def quarantined(run):
    return {
        (line["row"], Path(line["shard"]).name)
        for path in run.glob("quarantine-*.jsonl")
        for line in map(json.loads, path.read_text().splitlines())
    }


def truncate(tar):
    with open(tar, "r+b") as stream:
        stream.truncate(tar.stat().st_size // 2)


def empty(tar):
    tar.write_bytes(b"")


@pytest.mark.slow
@pytest.mark.parametrize("damage", [truncate, empty, Path.unlink])
def test_a_shard_damaged_beforehand_is_an_error_before_the_first_step(sample, shards, tmp_path, damage):
    damage(shards / "train-000003.tar")
    _, config = recipe_of(sample, shards, tmp_path)
    status, said, _ = ended(launch(config))
    assert status == 2
    assert len(said) == 1
    assert "train-000003.tar" in said[0]


def visited(shards, positions):
    rows = (
        SampleOrder(Mixture.of(ShardSet.open(shards)), StreamSettings(seed=29))
        .indices(np.arange(positions))
        .sample_rows
    )
    return rows.tolist()


def garble(shards, row):
    """Overwrite a sample's arrays, headers included."""
    opened = ShardSet.open(shards)
    at = int(member_offsets(opened.samples[row : row + 1], 2).tokens[0]) - 128
    with open(shards / opened.shards[int(opened.shard_numbers(row)[0])].name, "r+b") as stream:
        stream.seek(at)
        stream.write(np.random.default_rng(row).bytes(256))


def test_garbage_is_quarantined_and_both_ranks_take_all_steps(sample, shards, tmp_path):
    rows = visited(shards, STEPS * BATCH)
    bad = {rows[place] for place in (3, 8, 100, 101, 150)}
    for row in bad:
        garble(shards, row)
    recipe, config = recipe_of(sample, shards, tmp_path)
    said = run_ranks(2, REPOSITORY / "launch/train.py", "--config", config)
    assert "Traceback" not in said
    assert steps_of(recipe.directory) == list(range(1, STEPS + 1))
    assert {row for row, _ in quarantined(recipe.directory)} == bad
    assert all(name in said for _, name in quarantined(recipe.directory))
    ranks = [len((recipe.directory / f"quarantine-{rank}.jsonl").read_text().splitlines()) for rank in range(2)]
    assert sum(ranks) == 5


@pytest.mark.slow
def test_shards_of_garbage_stop_both_ranks_with_a_checkpoint(sample, shards, tmp_path):
    damaged = {f"train-{number:06d}.tar" for number in range(3, 23)}
    for name in damaged:
        (shards / name).write_bytes(np.random.default_rng(0).bytes((shards / name).stat().st_size))
    recipe, config = recipe_of(sample, shards, tmp_path, steps=2000)
    status, said, _ = ended(launch(config))
    assert status == 2
    assert len(said) == 1
    assert "samples were bad" in said[0]
    steps = steps_of(recipe.directory)
    [checkpoint] = complete_checkpoints(recipe.directory / "checkpoints")
    assert checkpoint.name == f"step-{steps[-1]:08d}"
    assert {name for _, name in quarantined(recipe.directory)} <= damaged


@pytest.mark.slow
def test_equal_keys_and_bytes_that_differ_from_the_index_do_not_hang(sample, shards, tmp_path):
    opened = ShardSet.open(shards)
    first, second = (int(opened.samples[row]["offset"]) for row in (0, 1))
    with open(shards / opened.shards[0].name, "r+b") as stream:
        header = stream.read(first + 512)[first:]
        stream.seek(second)
        stream.write(header[:100])
    recipe, config = recipe_of(sample, shards, tmp_path)
    assert sha256_file(shards / opened.shards[0].name) != opened.shards[0].sha256
    assert main(["shards", "lint", str(shards)]) != 0
    status, _, said = ended(launch(config))
    assert status == 0, said
    assert steps_of(recipe.directory) == list(range(1, STEPS + 1))


def late_tar(shards, positions):
    """A training tar none of whose samples is among the first positions."""
    opened = ShardSet.open(shards)
    early = {int(number) for number in opened.shard_numbers(np.array(visited(shards, positions)))}
    late = [number for number, shard in enumerate(opened.shards) if shard.split == "train" and number not in early]
    return opened.shards[late[0]].name


@pytest.mark.slow
def test_a_run_waits_for_a_lost_shard_then_stops_with_a_checkpoint(sample, shards, tmp_path):
    recipe, config = recipe_of(sample, shards, tmp_path, steps=2000)
    launcher = launch(config)
    metrics, until = recipe.directory / "metrics.jsonl", time.monotonic() + WATCHDOG
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < until:
        time.sleep(0.2)
    for tar in shards.glob("train-*.tar"):
        tar.rename(tar.with_suffix(".away"))
    status, said, everything = ended(launcher)
    steps = steps_of(recipe.directory)
    assert status == 2, everything
    assert len(said) == 1
    assert f"stopped after step {steps[-1]}" in said[0]
    assert "trying again" in everything
    [checkpoint] = complete_checkpoints(recipe.directory / "checkpoints")
    assert checkpoint.name == f"step-{steps[-1]:08d}"


def check_cache(cache, shards):
    digests = {shard.name: shard.sha256 for shard in ShardSet.open(shards).shards}
    kept = list(cache.rglob("*.tar"))
    assert kept
    assert all(sha256_file(tar) == digests[tar.name] for tar in kept)


@pytest.mark.slow
def test_training_reads_from_a_slow_server_that_breaks_off(sample, tmp_path):
    server = Server(sample.shards, ("half", "slow"))
    recipe, config = recipe_of(sample, server.url, tmp_path, steps=8)
    status, _, said = ended(launch(config, BALI_DS_CACHE=str(tmp_path / "cache")))
    assert status == 0, said
    assert steps_of(recipe.directory) == list(range(1, 9))
    assert "trying again" in said
    check_cache(tmp_path / "cache", sample.shards)


@pytest.mark.slow
def test_a_server_that_fails_permanently_stops_the_run_with_a_checkpoint(sample, many, tmp_path):
    server = Server(many)
    server.gone = {late_tar(many, 600)}
    recipe, config = recipe_of(sample, server.url, tmp_path, steps=2000)
    status, said, everything = ended(launch(config, BALI_DS_CACHE=str(tmp_path / "cache")))
    assert status == 2, everything
    assert len(said) == 1
    assert re.match(rf"train: rank [01] on host \S+: {server.url}/{next(iter(server.gone))}", said[0])
    [checkpoint] = complete_checkpoints(recipe.directory / "checkpoints")
    assert checkpoint.name == f"step-{steps_of(recipe.directory)[-1]:08d}"
    check_cache(tmp_path / "cache", many)
