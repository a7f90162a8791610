"""The training step with an engine that only records what is called."""

from types import SimpleNamespace

import pytest
import torch

from bali_ds.checkpoint.manager import RunProgress
from bali_ds.data.loader import Step
from bali_ds.data.sampler import Position
from bali_ds.training.step import StepCallback, StepOutcome, train_step

BEFORE, AFTER = Position(0, 8), Position(0, 16)


class RecordingEngine:
    """An engine without DeepSpeed, whose optimizer drops gradients as at ZeRO 0 in fp32."""

    device = torch.device("cpu")

    def __init__(self):
        self.calls = []
        zero_grad = lambda **_: self.calls.append("zero_grad")  # noqa: E731
        groups = [{"lr": 1.0, "base_learning_rate": 0.5}]
        self.optimizer = SimpleNamespace(param_groups=groups, zero_grad=zero_grad)

    def __call__(self, micro_batches):
        self.calls.append("forward")
        self.drawn = torch.rand(1)
        return micro_batches[0].sum(), {"loss": micro_batches[0].sum()}

    def backward(self, loss):
        self.calls.append(f"backward {float(loss)}")

    def step(self):
        self.calls.append("step")

    def zero_optimization_stage(self):
        return 0

    def fp16_enabled(self):
        return False

    def bfloat16_enabled(self):
        return False


class Callback(StepCallback):
    def __init__(self, calls, outcome):
        self.calls, self.outcome = calls, outcome

    def before_forward(self, progress, batch):
        self.calls.append(f"before step {progress.step + 1}")
        assert batch.position_after == AFTER

    def before_backward(self, loss):
        return 2 * loss

    def before_update(self, outputs):
        assert float(outputs["loss"]) == 3
        return self.outcome


def taken(engine, **options):
    return train_step(engine, Step(AFTER, (torch.tensor([1.0, 2.0]),)), RunProgress(1, BEFORE), **options)


def test_forward_backward_update():
    engine = RecordingEngine()
    result = taken(engine)
    assert engine.calls == ["forward", "backward 3.0", "step"]
    assert (result.outcome, result.progress) == (StepOutcome.TAKEN, RunProgress(2, AFTER))
    assert engine.optimizer.param_groups[0]["lr"] == 1.0


@pytest.mark.parametrize(
    ("outcomes", "update", "step"),
    [
        ((StepOutcome.TAKEN, StepOutcome.TAKEN), "step", 2),
        ((StepOutcome.TAKEN, StepOutcome.SKIPPED), "zero_grad", 1),
        ((StepOutcome.ROLLED_BACK, StepOutcome.TAKEN), "step", 1),
    ],
)
def test_callbacks_decide_about_the_update(outcomes, update, step):
    engine = RecordingEngine()
    result = taken(engine, callbacks=[Callback(engine.calls, outcome) for outcome in outcomes])
    assert engine.calls == ["before step 2", "before step 2", "forward", "backward 12.0", update]
    assert result.progress == RunProgress(step, AFTER)


def test_rates_follow_the_schedule_and_dropout_follows_the_seed():
    engine = RecordingEngine()
    taken(engine, learning_rate_factor=0.1, dropout_seed=7)
    first = engine.drawn
    taken(engine, dropout_seed=7)
    assert torch.equal(engine.drawn, first)
    assert engine.optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
