import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from bali_ds.cli import main
from bali_ds.data.loader import Loader
from bali_ds.data.mixture import open_mixture
from bali_ds.errors import InputError
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.model.build_model import build_aligner
from bali_ds.objectives.registry import stream_settings
from bali_ds.planning.activations import PassMemory
from bali_ds.planning.memory import MemoryInputs, rank_memory
from bali_ds.planning.run_data import RunData
from bali_ds.planning.run_plan import _loss_bytes, _passes, fewest_gpus, plan, plan_text, shapes_of_model, weight_reads

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def recipe(sample, tmp_path):
    return sample.recipe(tmp_path / "runs", deepspeed=REPOSITORY / "ds_configs/zero2.json", steps=20)


def test_parameters_are_those_of_the_built_model(recipe):
    real, shapes = build_aligner(recipe, 10), shapes_of_model(recipe, 10)
    assert {name: value.shape for name, value in real.named_parameters()} == {
        name: value.shape for name, value in shapes.named_parameters()
    }
    assert all(parameter.is_meta for parameter in shapes.parameters())


def test_plan_of_the_sample(recipe):
    two = plan(recipe, ranks=2, on_gpu=False, samples_per_second=32.0)
    assert two.batch_plan.passages_per_micro_batch == 8
    assert two.stage == 2
    assert two.seconds == pytest.approx(20 * 16 / 32)
    assert [memory.stage for memory in two.memory] == [0, 1, 2, 3]
    assert two.memory[1].optimizer * 2 == pytest.approx(two.memory[0].optimizer, rel=0.01)
    halves = plan(
        recipe.model_copy(update={"batch": recipe.batch.model_copy(update={"micro_batches": 4})}), ranks=2, on_gpu=False
    )
    assert halves.memory[0].activations < 0.6 * two.memory[0].activations
    assert halves.seconds is None


def test_the_gradients_of_a_micro_batch_are_kept_until_those_of_the_others_are_added(recipe):
    """Even at stage 3, which reduces a gradient once it is complete."""
    loader = RunData.open(recipe).loader(recipe, rank=0, world_size=1)
    batch, model = next(loader).micro_batches[0], shapes_of_model(recipe, 10)
    micro_batches = recipe.batch.model_copy(update={"micro_batches": 3})
    several = recipe.model_copy(update={"batch": micro_batches})
    one, many = (_passes(each, model, batch, on_gpu=False) for each in (recipe, several))
    gradients = sum(4 * parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert many.without_gradients - one.without_gradients == pytest.approx(gradients, rel=0.2)
    assert many.with_gradients >= many.without_gradients


@pytest.mark.parametrize(("micro_batches", "recomputed", "reads"), [(1, False, 2), (2, False, 6), (2, True, 8)])
def test_a_step_reads_the_weights_as_often_as_two_ranks_gathered_them(recipe, micro_batches, recomputed, reads):
    """Two ranks that keep no weights at stage 3 gathered 1.97, 5.59 and 6.82 times the model, embeddings less often."""
    batch = recipe.batch.model_copy(update={"micro_batches": micro_batches})
    encoder = recipe.text_encoder.model_copy(update={"gradient_checkpointing": recomputed})
    assert weight_reads(recipe.model_copy(update={"batch": batch, "text_encoder": encoder})) == reads


def test_the_fewest_gpus_for_seven_billion_parameters():
    """At stage 3 a rank holds 16 bytes of state for each of its parameters, and half as many GPUs do not hold them."""
    inputs = MemoryInputs(
        7_000_000_000, 7_000_000_000, 10**8, 2, 1, PassMemory(0, 0), True, {"zero_optimization": {"stage": 3}}
    )

    def inputs_of(ranks: int) -> MemoryInputs:
        return replace(inputs, ranks=ranks)

    fewest = fewest_gpus(inputs_of, 3)
    assert fewest == 2
    assert rank_memory(inputs_of(fewest), 3).peak < 76 * 2**30 < rank_memory(inputs, 3).peak
    assert fewest_gpus(inputs_of, 0) is None


def test_a_loss_that_grows_with_the_ranks_may_fit_nowhere():
    """80 GiB of gathered views do not fit on one GPU, and on twice as many GPUs they are 160 GiB on each."""
    inputs = MemoryInputs(10**8, 10**8, 10**7, 2, 1, PassMemory(0, 0), True, {"zero_optimization": {"stage": 3}})

    def inputs_of(ranks: int) -> MemoryInputs:
        views = 80 * 2**30 * ranks
        return replace(inputs, ranks=ranks, activations=PassMemory(views, views))

    assert fewest_gpus(inputs_of, 3) is None


def test_the_plan_says_where_no_number_of_gpus_suffices(recipe, monkeypatch):
    planned = plan(recipe, ranks=2, on_gpu=True)
    assert "   fits  from 1 GPU of 80 GB at ZeRO stage 2" in plan_text(planned, recipe)
    monkeypatch.setattr("bali_ds.planning.run_plan.GPU_BYTES", 1)
    planned = plan(recipe, ranks=2, on_gpu=True)
    assert "   fits  not even on 4,096 GPUs of 80 GB at ZeRO stage 2" in plan_text(planned, recipe)
    assert "fits" not in plan_text(plan(recipe, ranks=2, on_gpu=False), recipe)


def test_recomputed_attention_on_a_gpu_is_fused_too(recipe):
    encoder = recipe.text_encoder.model_copy(update={"gradient_checkpointing": True})
    planned = plan(recipe.model_copy(update={"text_encoder": encoder}), ranks=2, on_gpu=True)
    assert planned.fewest_gpus == 1


def test_a_gpu_also_holds_derivatives_by_all_similarities(recipe, monkeypatch):
    whole = plan(recipe, ranks=2, on_gpu=True)
    monkeypatch.setattr("bali_ds.planning.run_plan.DERIVATIVE_BYTES", 0)
    without = plan(recipe, ranks=2, on_gpu=True)
    views, itemsize = 2 * 2 * whole.views, {"fp32": 4, "bf16": 2}[recipe.precision]
    assert whole.memory[0].activations - without.memory[0].activations == views**2 * itemsize


def test_the_memory_of_the_loss_follows_its_settings(recipe):
    """Of 16 ranks on two hosts, with features in fp32; a block is what one rank sends of its views."""
    model, views = shapes_of_model(recipe, 10), 6

    def changed(**settings):
        contrastive = recipe.objective.contrastive.model_copy(update=settings)
        return recipe.model_copy(update={"objective": recipe.objective.model_copy(update={"contrastive": contrastive})})

    def held(on_gpu=False, **settings):
        """What the loss holds of other ranks."""
        whole, alone = (
            _loss_bytes(changed(**{**settings, **change}), model, views, 16, on_gpu=on_gpu)
            for change in ({}, {"negatives": "rank"})
        )
        return whole - alone

    block = 2 * views * model.text.width  # text views and graph views
    # features of two hops; sums of this one, those sent and those that arrive
    ring = block * (2 * 4 + 3 * 4)
    # features of all; sums for half of the ranks and from as many
    assert held(communication="gather") == block * (16 * 4 + 2 * 8 * 4)
    assert held(communication="gather", negatives="node") == block * (8 * 4 + 2 * 4 * 4)
    assert held(communication="ring") == ring
    # queries meet keys: half of the views are sent, and sums come back from all other ranks
    assert held(communication="gather", kind="clip") == block // 2 * (16 * 4 + 2 * 15 * 4)
    assert held(on_gpu=True) > 0
    for on_gpu in (False, True):
        assert held(negatives="rank", on_gpu=on_gpu) == 0
        assert _loss_bytes(changed(weight=0.0), model, views, 16, on_gpu=on_gpu) == 0

    whole, alone = (
        plan(changed(communication="ring", negatives=negatives), ranks=16, on_gpu=False)
        for negatives in ("all", "rank")
    )
    assert (whole.memory[0].activations - alone.memory[0].activations) * views == ring * whole.views


def test_the_largest_batch_counts_linearized_neighborhoods(recipe):
    """The text encoder reads neighborhoods, the longest part of a linearized batch, as well as passages."""
    linearized = recipe.graph_encoder.model_copy(update={"kind": "linearized", "tokens": 128})
    recipe = recipe.model_copy(update={"graph_encoder": linearized})
    graph, shards = KnowledgeGraph.open(recipe.data.graph), open_mixture(recipe.data.shards)
    with Loader(shards, graph, stream_settings(recipe), global_batch=16) as loader:
        batches = [next(loader).micro_batches[0] for _ in range(8)]

    def positions(*fields):
        return [sum(int(getattr(each, field).lengths.sum()) for field in fields) for each in batches]

    everything, passages = positions("passages", "names", "neighborhoods"), positions("passages")
    assert everything.index(max(everything)) != passages.index(max(passages))
    made = plan(recipe, ranks=1, on_gpu=False)
    assert made.positions == max(everything)
    assert made.views == batches[everything.index(max(everything))].num_views


def test_command_for_a_hostfile_of_thousands(recipe, tmp_path, capsys):
    hostfile, file = tmp_path / "hostfile", tmp_path / "recipe.yaml"
    hostfile.write_text("".join(f"node{n} slots=2\n" for n in range(1000)))
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    arguments = ["plan", "--config", str(file), "--hostfile", str(hostfile), "--device", "cuda"]
    assert main([*arguments, "batch.passages=2000", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["batch_plan"]["ranks"] == 2000
    assert printed["batch_plan"]["passages_per_rank"] == 1
    assert main([*arguments, "batch.passages=2001"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "is not divisible by 2000 ranks x 1 micro-batches; use 2000 or 4000" in captured.err


def test_text_shows_every_stage_and_marks_the_recipes_own(recipe, tmp_path, capsys):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    assert main(["plan", "--config", str(file), "--ranks", "2", "--samples-per-second", "3"]) == 0
    printed = capsys.readouterr().out
    assert "16 passages = 2 ranks x 1 micro-batches x 8" in printed
    assert "*2" in printed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("evaluation.linking={dictionary: missing.txt, queries: missing.tsv}", "evaluation.linking: missing.txt: "),
        ("text_encoder.weights=pretrained", "has no weights (model.safetensors)"),
        ("data.shards=missing", "missing: is not a directory of shards; build one with: bali-ds shards build"),
    ],
)
def test_what_a_run_needs_is_opened(recipe, tmp_path, capsys, change, said):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    assert main(["plan", "--config", str(file), "--ranks", "2", change]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_missing_encoder_is_named(recipe):
    encoder = recipe.text_encoder.model_copy(update={"path": "/nowhere"})
    with pytest.raises(InputError, match="/nowhere: is not a Hugging Face encoder"):
        shapes_of_model(recipe.model_copy(update={"text_encoder": encoder}), 10)


def activations(recipe, **changes):
    """Bytes of the passes on a GPU at stage 0, with other settings of the text encoder, and tokens read."""
    changed = recipe.text_encoder.model_copy(update=changes)
    made = plan(recipe.model_copy(update={"text_encoder": changed, "precision": "bf16"}), ranks=1, on_gpu=True)
    return made.memory[0].activations, made.positions


def test_a_fused_layer_keeps_what_its_backward_pass_reads(recipe):
    (one, tokens), (two, _) = (activations(recipe, layer=layer) for layer in (1, 2))
    config = json.loads((Path(recipe.text_encoder.path) / "config.json").read_text())
    width, inner, heads = (config[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads"))
    # projections, values, two sums, their norms, both sides of GELU; normalizers in float32; the gradients of weights
    states = tokens * (2 * (8 * width + 2 * inner) + 4 * heads)
    weights = 2 * (4 * width * width + 2 * width * inner + inner + 9 * width)
    assert two - one == pytest.approx(states + weights, rel=0.05)


def test_layers_that_are_recomputed_keep_their_inputs_alone(recipe):
    kept, _ = activations(recipe, fused_layers=False)
    recomputed, _ = activations(recipe, fused_layers=False, gradient_checkpointing=True)
    assert recomputed < 0.75 * kept
