import math
from pathlib import Path

import pytest
import torch

from bali_ds.data.evaluation_batches import evaluation_batches
from bali_ds.data.loader import Loader
from bali_ds.model.build_model import build_aligner
from bali_ds.objectives.registry import stream_settings
from bali_ds.planning.run_data import RunData
from tests.conftest import run_ranks
from tests.losses.dense_contrastive import dense_loss
from tests.model.gradients import loss_and_gradients
from tests.model.odd_batches import without_mentions
from tests.packs import rows_of, states_one_by_one

LEARNED = {"contrastive": {"learn_temperature": True}}
SIGMOID = {"contrastive": {"kind": "sigmoid"}}
OBJECTIVES = {"ntxent": LEARNED, "sigmoid": SIGMOID}


@pytest.fixture(scope="module")
def recipe(sample, tmp_path_factory):
    return sample.recipe(tmp_path_factory.mktemp("runs"), objective=LEARNED)


@pytest.fixture(scope="module")
def parts(recipe):
    data = RunData.open(recipe)
    loader = Loader(data.shards, data.graph, stream_settings(recipe), global_batch=recipe.batch.passages)
    return build_aligner(recipe, 2 * data.graph.num_relations), next(loader).micro_batches[0]


@pytest.fixture(scope="module")
def of_two_ranks(sample, tmp_path_factory):
    """For each objective the recipe, and the loss and gradients that two ranks compute."""
    folder = tmp_path_factory.mktemp("ranks")
    recipes = {name: sample.recipe(folder, objective=objective) for name, objective in OBJECTIVES.items()}
    for name, recipe in recipes.items():
        (folder / f"{name}.json").write_text(recipe.model_dump_json())
    run_ranks(2, Path(__file__).with_name("ranks.py"), folder)
    return {name: (recipe, *torch.load(folder / f"{name}.pt", weights_only=True)) for name, recipe in recipes.items()}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_loss_and_gradients_of_two_ranks_equal_those_of_one_process(of_two_ranks, objective):
    recipe, loss, gradients = of_two_ranks[objective]
    expected_loss, expected = loss_and_gradients(recipe, 0, 1)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=0)
    assert gradients.keys() == expected.keys()
    # the gradient of a key's bias is zero but for rounding: attention does not see it
    noise = 1e-7 * max(gradient.norm() for gradient in expected.values())
    for name, gradient in gradients.items():
        assert (gradient - expected[name]).norm() <= 1e-5 * expected[name].norm() + noise, name
        assert expected[name].norm() > 0, name


def test_loss_is_the_sum_of_closed_forms_over_the_views(parts):
    aligner, batch = parts
    aligner.eval()
    loss, losses = aligner([batch])
    views = aligner.encode(batch)
    scale = 1 / 0.07
    contrastive = dense_loss(views.text, views.graph, scale, batch.concept_ids, batch.concept_ids, "ntxent")
    hidden = states_one_by_one(aligner.text.encoder, batch.passages)
    logits = aligner.text.head(hidden[batch.labeled_tokens]).double()
    log_likelihoods = logits.log_softmax(-1)[torch.arange(len(batch.labels)), batch.labels]
    assert losses["contrastive"].item() == pytest.approx(contrastive.item(), rel=1e-5)
    assert losses["masked_language_model"].item() == pytest.approx(-log_likelihoods.mean().item(), rel=1e-5)
    assert loss.item() == pytest.approx(contrastive.item() - log_likelihoods.mean().item(), rel=1e-5)


def test_sigmoid_is_the_dense_form_with_a_learned_scale_and_bias(sample, tmp_path):
    """SigLIP (Zhai et al., ICCV 2023): t = exp(t') and b are learned, from log 10 and -10."""
    recipe = sample.recipe(tmp_path, objective=SIGMOID | {"masked_language_model": {"weight": 0.0}})
    data = RunData.open(recipe)
    loader = Loader(data.shards, data.graph, stream_settings(recipe), global_batch=recipe.batch.passages)
    aligner, batch = build_aligner(recipe, 2 * data.graph.num_relations).eval(), next(loader).micro_batches[0]
    loss, _ = aligner([batch])
    loss.backward()
    views = aligner.encode(batch)
    log_scale, bias = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (math.log(10), -10.0))
    expected = dense_loss(
        views.text.detach(), views.graph.detach(), log_scale.exp(), views.text_concept_ids, views.concept_ids,
        "sigmoid", bias=bias,
    )  # fmt: skip
    slopes = torch.autograd.grad(expected, (log_scale, bias))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert aligner.log_scale_offset.grad.item() == pytest.approx(slopes[0].item(), rel=1e-4)
    assert aligner.logit_bias_offset.grad.item() == pytest.approx(slopes[1].item(), rel=1e-5)
    assert (aligner.logit_scale.item(), aligner.logit_bias.item()) == (pytest.approx(10), pytest.approx(-10))


@pytest.mark.parametrize(
    ("changes", "calls"),
    [({}, ["passages names"]), ({"kind": "linearized"}, ["passages neighborhoods"]),
     ({"names": "no_gradient"}, ["passages", "names"])],
    ids=["ego_graph", "linearized", "no_gradient"],
)  # fmt: skip
def test_all_that_gets_gradients_is_read_in_one_call_without_padding(sample, tmp_path, changes, calls):
    recipe = sample.recipe(tmp_path, graph_encoder=changes)
    data = RunData.open(recipe)
    loader = Loader(data.shards, data.graph, stream_settings(recipe), global_batch=recipe.batch.passages)
    aligner, batch = build_aligner(recipe, 2 * data.graph.num_relations), next(loader).micro_batches[0]
    read = []
    aligner.text.encoder.register_forward_pre_hook(
        lambda _module, _inputs, given: read.append(given["input_ids"].tolist()), with_kwargs=True
    )
    aligner([batch])
    packs = [[getattr(batch, kind) for kind in call.split()] for call in calls]
    assert read == [[[token for packed in each for row in rows_of(packed) for token in row]] for each in packs]


def test_text_views_are_means_over_all_mention_tokens(parts):
    aligner, batch = parts
    aligner.eval()
    text = aligner.encode(batch).text
    hidden = states_one_by_one(aligner.text.encoder, batch.passages)
    for view in range(batch.num_views):
        rows = batch.mention_tokens[batch.mention_views == view].tolist()
        torch.testing.assert_close(text[view], sum(hidden[row] for row in rows) / len(rows), atol=1e-5, rtol=1e-4)


def test_graph_views_differ_between_concepts(parts):
    aligner, batch = parts
    aligner.eval()
    graph = torch.nn.functional.normalize(aligner.encode(batch).graph)
    different = batch.concept_ids[:, None] != batch.concept_ids[None, :]
    assert (graph @ graph.T)[different].max() < 0.9999


def test_a_batch_without_mentions_has_a_finite_loss_and_all_gradients(parts):
    aligner, batch = parts
    empty = without_mentions(batch)
    aligner.zero_grad()
    loss, losses = aligner([empty])
    loss.backward()
    assert losses["contrastive"] == 0
    assert loss.isfinite()
    assert [name for name, parameter in aligner.named_parameters() if parameter.grad is None] == []
    aligner.zero_grad()


def test_linearized_views_are_the_means_of_the_neighborhoods_as_text(sample, tmp_path):
    weights = {"graph_language_model": {"weight": 0.5}}
    recipe = sample.recipe(tmp_path, graph_encoder={"kind": "linearized"}, objective=weights)
    data = RunData.open(recipe)
    loader = Loader(data.shards, data.graph, stream_settings(recipe), global_batch=recipe.batch.passages)
    aligner, batch = build_aligner(recipe, 2 * data.graph.num_relations), next(loader).micro_batches[0]
    loss, losses = aligner([batch])
    graph = aligner.encode(batch).graph
    states = states_one_by_one(aligner.text.encoder, batch.neighborhoods).split(batch.neighborhoods.lengths.tolist())
    for view, row in enumerate(batch.neighborhood_rows.tolist()):
        torch.testing.assert_close(graph[view], states[row][1:-1].mean(0), atol=1e-5, rtol=1e-4)
    expected = losses["contrastive"] + losses["masked_language_model"] + 0.5 * losses["graph_language_model"]
    torch.testing.assert_close(loss.detach(), expected)
    assert abs(losses["graph_language_model"] - math.log(aligner.text.encoder.config.vocab_size)) < 1
    loss.backward()
    assert [name for name, parameter in aligner.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("alone", ["contrastive", "masked_language_model"])
def test_what_an_objective_of_weight_0_needs_is_frozen_and_not_called(sample, tmp_path, alone):
    weights = {name: {"weight": float(name == alone)} for name in ("contrastive", "masked_language_model")}
    recipe = sample.recipe(tmp_path, objective=weights)
    data = RunData.open(recipe)
    loader = Loader(data.shards, data.graph, stream_settings(recipe), global_batch=recipe.batch.passages)
    aligner, batch = build_aligner(recipe, 2 * data.graph.num_relations).train(), next(loader).micro_batches[0]
    called = []
    for name, module in (("names", aligner.graph), ("head", aligner.text.head)):
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    loss, losses = aligner([batch])
    assert loss == losses[alone] > 0
    loss.backward()
    for name, parameter in aligner.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert called == (["names"] if alone == "contrastive" else ["head"])
    frozen = {name.split(".")[0] for name, parameter in aligner.named_parameters() if not parameter.requires_grad}
    assert frozen == ({"text"} if alone == "contrastive" else {"graph"})
    aligner.eval()
    held_out = next(evaluation_batches(data.shards, data.graph, stream_settings(recipe), batch_size=8))
    assert aligner.encode(held_out).graph.shape == aligner.encode(held_out).text.shape
