"""The projection against closed forms: arithmetic by peak and utilization, rings by bytes and links, hours by steps."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from bali_ds.cli import main
from bali_ds.errors import InputError
from bali_ds.losses.contrastive.communication_cost import H100, LossSizes, cost_of
from bali_ds.planning.cluster import Cluster
from bali_ds.planning.passage_counts import ABSTRACT
from bali_ds.planning.projection import project, projection_text
from bali_ds.planning.run_plan import shapes_of_model

REPOSITORY = Path(__file__).parents[2]
CONFIG = {
    "model_type": "bert", "architectures": ["BertForMaskedLM"], "hidden_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 4, "intermediate_size": 256, "vocab_size": 500,
}  # fmt: skip
LAYERS = 3 * (4 * 64**2 + 2 * 64 * 256)


@pytest.fixture
def recipe(sample, tmp_path):
    """A recipe of which nothing but the configuration of the encoder exists."""
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    (encoder / "config.json").write_text(json.dumps(CONFIG))
    return sample.recipe(
        tmp_path / "runs",
        data={"graph": tmp_path / "no-graph", "shards": str(tmp_path / "no-shards")},
        text_encoder={"path": str(encoder)},
        graph_encoder={"kind": "linearized"},
        objective={"masked_language_model": {"weight": 0.0}, "contrastive": {"kind": "clip", "negatives": "rank"}},
        batch={"passages": 16},
        precision="bf16",
        deepspeed=REPOSITORY / "ds_configs/zero1.json",
    )


def changed(recipe, section, **values):
    own = getattr(recipe, section)
    return recipe.model_copy(update={section: own.model_copy(update=values)})


def test_arithmetic_takes_its_flops_by_peak_and_utilization(recipe):
    cluster = Cluster(mfu=0.25)
    (run,) = project(recipe, [1], passages=1600, card="A100", cluster=cluster).runs
    # six for each weight of a layer and token, twelve for each pair of tokens, layer and feature
    tokens, pairs = ABSTRACT.text_tokens + ABSTRACT.name_tokens, ABSTRACT.text_pairs + ABSTRACT.name_pairs
    operations = 16 * (6 * tokens * (LAYERS + 64 * 64) + 12 * pairs * 3 * 64)  # and the pooler's matrix
    assert run.encoders == pytest.approx(operations / (0.25 * 312e12), rel=0.02)
    assert run.communication == 0
    assert run.step == run.encoders + run.loss + run.communication + run.data
    assert run.hours == pytest.approx(100 * run.step / 3600)


def test_recomputed_passes_count(recipe):
    plain, layers, both = (
        project(each, [1], passages=1600).runs[0].encoders
        for each in (
            recipe,
            changed(recipe, "text_encoder", gradient_checkpointing=True),
            changed(changed(recipe, "text_encoder", gradient_checkpointing=True), "batch", micro_batches=2),
        )
    )
    assert layers == pytest.approx(4 / 3 * plain)
    assert both == pytest.approx(5 / 3 * plain)


def test_gradients_travel_a_ring_of_the_slower_link(recipe):
    """Stage 1 sends fp32 gradients twice and bf16 weights once; half of the arithmetic hides it."""
    made = project(recipe, [1, 8, 64], passages=64 * 1600)
    alone, host, cluster = made.runs
    # the head of the masked language model has no loss, and so no gradients
    trained = sum(each.numel() for each in shapes_of_model(recipe, 200).parameters() if each.requires_grad)
    assert trained < made.parameters
    for run, rate in ((host, 360e9), (cluster, 40e9)):
        volume = trained * (2 * 4 + 2) * (run.gpus - 1) / run.gpus
        assert run.communication == pytest.approx(max(0.0, volume / rate - run.encoders / 2), rel=1e-6)
        assert run.encoders == alone.encoders
        assert run.gpu_hours == pytest.approx(run.hours * run.gpus)
    assert [run.passages for run in made.runs] == [16] * 3
    assert cluster.communication > 0
    assert cluster.state < host.state


def test_weights_that_hosts_hold_are_gathered_within(recipe, tmp_path):
    made, cluster = [], Cluster(rates=replace(H100, call=0.0), loader=1e12, read=1e15)  # so that only the wire waits
    for more in ({}, {"zero_hpz_partition_size": 8}):
        zero = {"stage": 3, "stage3_max_live_parameters": 0, **more}
        (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": zero}))
        partitioned = recipe.model_copy(update={"deepspeed": tmp_path / "zero.json"})
        made.append(project(partitioned, [1, 64], passages=64 * 1600, card="B200", cluster=cluster))
    run, held = (each.runs[1] for each in made)
    assert held.communication > 0
    read = 2 * made[0].parameters  # forward among all; backward from the copy, in place of among all
    expected = read * 63 / 64 / 40e9 - read * 7 / 8 / 360e9
    assert run.communication - held.communication == pytest.approx(expected, rel=1e-6)
    assert held.state - run.state == pytest.approx(read / 8, abs=2)
    assert "zero_hpz_partition_size" in projection_text(made[0], recipe)
    assert "zero_hpz_partition_size" not in projection_text(made[1], recipe)


@pytest.mark.parametrize(("kind", "pairs", "views"), [("clip", 160 * 160, 160), ("ntxent", 320**2 / 2, 320)])
@pytest.mark.parametrize(("negatives", "compared"), [("all", 64), ("node", 8)])
def test_the_loss_compares_views_of_as_many_ranks_as_asked(recipe, kind, pairs, views, negatives, compared):
    contrastive = recipe.objective.contrastive.model_copy(update={"kind": kind, "negatives": negatives})
    everywhere = changed(recipe, "objective", contrastive=contrastive)
    rates = replace(H100, message=0.0, call=0.0)
    cluster = Cluster(rates=rates)
    alone, many = project(everywhere, [1, 64], passages=64 * 1600, cluster=cluster).runs
    assert alone.loss == pytest.approx(8 * 64 * pairs / rates.products)
    assert many.loss == pytest.approx(compared * alone.loss)
    sixteen = changed(everywhere, "batch", passages=16 * 64)
    (again,) = project(sixteen, [64], passages=64 * 1600, cluster=cluster).runs
    assert again == many
    waiting = cost_of(LossSizes(compared, 8, views, views, 64, 2, kind == "ntxent", passes=3), rates, "auto").waiting
    (only,) = project(changed(recipe, "batch", passages=16 * 64), [64], passages=64 * 1600, cluster=cluster).runs
    assert many.communication - only.communication == pytest.approx(waiting, abs=1e-12)
    assert waiting > 0


def test_data_that_come_slowly_are_waited_for(recipe):
    slow = Cluster(read=1e3, loader=1e9)
    (run,) = project(recipe, [1], passages=1600, cluster=slow).runs
    assert run.step == pytest.approx(16 * ABSTRACT.stored_bytes / 1e3, rel=1e-6)
    assert "data.workers" in projection_text(project(recipe, [1], passages=1600, cluster=slow), recipe)


def test_small_blocks_are_bound_by_the_host(recipe):
    """Of one rank's views, each of the three passes of the kernels is one call."""
    (run,) = project(recipe, [1], passages=1600).runs
    assert run.loss == pytest.approx(3 * H100.call)


def test_a_schedule_of_the_recipe_is_predicted(recipe):
    def communication(schedule):
        own = recipe.objective.contrastive.model_copy(update={"negatives": "all", "communication": schedule})
        made = project(changed(recipe, "objective", contrastive=own), [1, 64], passages=64 * 1600)
        return made.runs[1].communication

    found = {schedule: communication(schedule) for schedule in ("auto", "gather", "hierarchical", "ring")}
    assert len(set(found.values())) == 3  # auto takes one of them


def test_a_state_larger_than_a_gpu_does_not_fit(recipe, monkeypatch):
    for module in ("projection", "run_plan"):
        monkeypatch.setattr(f"bali_ds.planning.{module}.GPU_BYTES", 1)
    text = projection_text(project(recipe, [1], passages=1600), recipe)
    assert "does not fit" in text
    assert "not even on 4,096 GPUs" in text


def test_passages_must_be_known(recipe):
    epochs = recipe.model_copy(update={"steps": None, "epochs": 2.0})
    with pytest.raises(InputError, match=r"no-shards does not exist on this machine; .* --passages"):
        project(epochs, [1])
    assert project(recipe, [1]).passages == recipe.steps * 16
    with pytest.raises(InputError, match=r"batch.passages: 16 is not divisible by the 3 GPUs"):
        project(recipe, [3])


def test_the_shards_of_a_recipe_are_counted_where_they_are(sample, tmp_path):
    recipe = sample.recipe(tmp_path, steps=None, epochs=2.0, precision="bf16")
    made = project(recipe, [1])
    assert made.measured
    index = json.loads((Path(sample.shards) / "index.json").read_text())
    training = sum(shard["samples"] for shard in index["shards"] if shard["split"] == "train")
    assert made.passages == 2 * training
    samples, stored = (sum(shard[key] for shard in index["shards"]) for key in ("samples", "bytes"))
    assert made.counts.stored_bytes == pytest.approx(stored / samples)
    assert 20 < made.counts.text_tokens < 128


def test_the_command_prints_a_row_for_each_number(recipe, tmp_path, capsys):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    arguments = ["plan", "--config", str(file), "--passages", "37e6", "--gpus", "1", "8", "1024"]
    assert main([*arguments, "--price", "2.5"]) == 0
    printed = capsys.readouterr().out
    assert "37,000,000 passages, assumed: 320 tokens, 60 of names, 10 views" in printed
    assert max(map(len, printed.splitlines())) < 100
    rows = [line.split() for line in printed.splitlines() if line[:7].strip() in ("1", "8", "1,024")]
    assert [row[0] for row in rows] == ["1", "8", "1,024"]
    assert main([*arguments, "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [float(row[-1].replace(",", "")) for row in rows] == pytest.approx(
        [2.5 * run["gpu_hours"] for run in runs], abs=0.6
    )
    assert main([*arguments[:-3], "1", "--card", "abacus"]) == 2
    assert "--card abacus: is unknown; use one of B200, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "1", "--passages", "inf"], "--passages: must be a whole number of at least 1, such as 37e6"),
        (["--gpus", "1", "--passages", "1.5"], "--passages: must be a whole number of at least 1, such as 37e6"),
        (["--gpus", "1", "--price", "nan"], "--price nan: must be a number of 0 or more"),
        (["--gpus", "1", "--samples-per-second", "9"], "--samples-per-second: not with --gpus"),
        (["--price", "2"], "--price: only with --gpus"),
    ],
)
def test_options_that_cannot_be_used_are_refused(recipe, tmp_path, capsys, arguments, message):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    try:
        status = main(["plan", "--config", str(file), *arguments])
    except SystemExit as ended:  # argparse
        status = ended.code
    assert status == 2
    assert message in capsys.readouterr().err
