"""DeepSpeed at any stage, world size and number of micro-batches against a plain loop of one process."""

from pathlib import Path

import pytest
import torch

from bali_ds.model.build_model import build_aligner
from bali_ds.planning.run_data import RunData
from bali_ds.training.engine import parameter_groups
from tests.conftest import run_ranks
from tests.training.cases import MICRO_BATCHES, STAGES, WORLD_SIZES

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def recipe(sample, tiny_encoder, tmp_path_factory):
    rates = {"text_learning_rate": 1e-3, "graph_learning_rate": 1e-3, "gradient_clipping": 1.0}
    encoder = {"path": str(tiny_encoder), "dropout": 0.0}
    return sample.recipe(tmp_path_factory.mktemp("runs"), text_encoder=encoder, optimizer=rates)


@pytest.fixture(scope="module")
def plain(recipe):
    """Weights and losses of plain PyTorch on the whole batch, and the gradients of the first step."""
    data = RunData.open(recipe)
    aligner = build_aligner(recipe, 2 * data.graph.num_relations)
    optimizer = torch.optim.AdamW(parameter_groups(aligner, recipe.optimizer), betas=(0.9, 0.98), eps=1e-6)
    loader = data.loader(recipe, rank=0, world_size=1)
    losses, gradients = [], {}
    for _, step in zip(range(recipe.steps), loader, strict=False):
        loss, _ = aligner(step.micro_batches)
        optimizer.zero_grad()
        loss.backward()
        gradients = gradients or {name: parameter.grad for name, parameter in aligner.named_parameters()}
        torch.nn.utils.clip_grad_norm_(aligner.parameters(), recipe.optimizer.gradient_clipping)
        optimizer.step()
        losses.append(loss.item())
    return dict(aligner.named_parameters()), losses, gradients


@pytest.fixture(scope="module")
def trained(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    (out / "recipe.json").write_text(recipe.model_dump_json())
    for world_size in WORLD_SIZES:
        run_ranks(world_size, Path(__file__).with_name("equivalence_ranks.py"), out / "recipe.json", out, timeout=600)
    return out


@pytest.mark.parametrize("micro_batches", MICRO_BATCHES)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_three_steps_give_the_weights_of_one_process(plain, trained, world_size, stage, micro_batches):
    expected, expected_losses, _ = plain
    weights, losses, _ = torch.load(trained / f"{world_size}-{stage}-{micro_batches}.pt", weights_only=True)
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    assert weights.keys() == expected.keys()
    for name, value in weights.items():
        close = torch.allclose(value, expected[name], rtol=1e-4, atol=2e-6)
        assert close, f"{name}: off by {(value - expected[name]).abs().max():.1e}"


@pytest.mark.parametrize("micro_batches", MICRO_BATCHES)
@pytest.mark.parametrize("stage", STAGES)
def test_a_step_reduces_each_gradient_once(plain, trained, stage, micro_batches):
    parameters = sum(parameter.numel() for parameter in plain[0].values())
    _, _, reduced = torch.load(trained / f"2-{stage}-{micro_batches}.pt", weights_only=True)
    for numbers in reduced:
        # Beside the gradients there are norms and overflow flags, and padding to even shards.
        assert parameters <= numbers < 1.02 * parameters


def test_every_parameter_gets_a_gradient(plain):
    _, _, gradients = plain
    for name, gradient in gradients.items():
        assert gradient is not None, name
        assert gradient.abs().max() > 0, name
